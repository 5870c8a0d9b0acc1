"""What holds of every family's pipeline with a bundle in it; a family's module says what it needs in a `Case`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch

import accelaes_export as ax
from accelaes_export.errors import InputError
from accelaes_export.policies import Dense, Policy
from accelaes_export.runtime.generate import call_arguments
from accelaes_export.tuning.recording import Recording
from accelaes_export.tuning.walk import ended
from tests.trajectories import difference, follows


@dataclass(frozen=True)
class Case:
    """A family's pipeline, as the sentences ask it.

    Attributes:
        sample: the latents after every step of a call of the pipeline with these options; each row's noise is its own.
        plans: policies, and the plans they have in a call without options.
        n: focus tokens of the last of them; None where it has no mask.
        argument, prompts: two prompts, and the pipeline's argument for them.
        together: options of a call with both of them.
        words: the prompts as a report has them; () where there is no mask.
        tolerance: how far a picture of a batch may be from the one it is alone, of its range.
        calls: options of calls that dense follows.
        tuned: whether plans can be tuned on it: guided in one call, by Euler's steps.
    """

    sample: Callable[..., Sequence[torch.Tensor]]
    plans: Sequence[tuple[Policy, str]]
    n: int | None
    prompts: Sequence[Any]
    argument: str = "prompt"
    together: Mapping[str, Any] = field(default_factory=dict)
    words: Sequence[str] = ()
    tolerance: float = 1e-4
    calls: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"as it is": {}})
    tuned: bool = True


class AnyPipeline:
    """Sentences about the module's fixtures `pipe` and `bundle`."""

    case: ClassVar[Case]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "options" in metafunc.fixturenames:
            metafunc.parametrize("options", self.case.calls.values(), ids=self.case.calls)

    def test_dense_follows_the_untouched_pipeline_and_restore_brings_it_back(self, pipe, bundle, options):
        sample = self.case.sample
        own, expected = pipe.transformer, sample(pipe, **options)
        assert ax.accelerate(pipe, bundle, policy=Dense()) is pipe
        assert follows(sample(pipe, **options), expected)
        ax.restore(pipe)
        assert pipe.transformer is own
        assert all(torch.equal(a, b) for a, b in zip(sample(pipe, **options), expected, strict=True))

    def test_policies_carry_out_their_plans(self, pipe, bundle):
        sample, n = self.case.sample, self.case.n
        dense = sample(pipe)
        for policy, plan in self.case.plans:
            ax.accelerate(pipe, bundle, policy=policy)
            found, report = sample(pipe), pipe.transformer.report()
            assert str(report.plan) == plan
            assert [record.kind for record in report.steps] == [step.kind for step in report.plan]
            computed = len(plan) - len(plan.lstrip("D"))
            assert follows(found[:computed], dense[:computed]), "dense steps in front are the pipeline's own"
            assert found[-1].isfinite().all()
            assert not follows(found, dense)
            ax.restore(pipe)
        assert (None if report.focus_index is None else report.focus_index.shape) == (n and (1, n))

    def test_tuning_goes_as_the_pipeline_does_or_says_that_it_cannot(self, pipe, bundle):
        prompts, scale, steps = list(map(str, self.case.prompts)), bundle.manifest.defaults.guidance, 5
        if not self.case.tuned:
            with pytest.raises(InputError, match="Tuning needs guidance in one call|Euler's steps"):
                Recording(pipe, bundle, scale).schedule(prompts[0], steps)
            return
        recording = Recording(pipe, bundle, scale)
        schedule, conditions = recording.schedule(prompts[0], steps), recording.conditions(prompts, seed=4)
        found = ended(bundle, conditions, schedule, scale, Dense())
        ax.accelerate(pipe, bundle, policy=Dense())
        for k, prompt in enumerate(prompts):
            latents: list[torch.Tensor] = []

            def keep(_: Any, i: int, t: Any, kwargs: dict[str, Any], latents: list = latents) -> dict[str, Any]:
                latents.append(kwargs["latents"].clone())
                return kwargs

            given = call_arguments(pipe, bundle.manifest, prompt, steps=steps, guidance=scale, seed=4 + k)
            pipe(**given | {"output_type": "latent", "callback_on_step_end": keep})
            assert difference([found[k : k + 1]], [latents[-1]]) < 1e-4
        ax.restore(pipe)

    def test_each_picture_of_a_batch_is_the_one_it_is_alone(self, pipe, bundle):
        case = self.case
        ax.accelerate(pipe, bundle, policy=case.plans[-1][0])
        both = case.sample(pipe, **{case.argument: list(case.prompts)}, **case.together)[-1]
        assert [words.prompt for words in pipe.transformer.report().words] == list(case.words)
        for k, prompt in enumerate(case.prompts):
            alone = case.sample(pipe, **{case.argument: prompt}, generator=torch.Generator().manual_seed(k))[-1]
            assert difference([both[k : k + 1]], [alone[:1]]) <= case.tolerance
