"""What stands in a pipeline for its transformer lives as a component does, also where pipelines share it."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch

import accelaes_export as ax
from accelaes_export.policies import AccelAes, Dense, Drift
from tests.shapes_pipeline import load_shapes
from tests.shapes_runs import (
    OTHER,
    PROMPT,
    STEPS,
    accelerated_sample,
    difference,
    encoded,
    from_embeddings,
    report_of,
    sample,
)


@pytest.fixture
def pipe():
    return load_shapes()


class TestPipelinesThatShareTheEngine:
    def copies(self, pipe, count=2):
        made = [type(pipe)(**pipe.components) for _ in range(count)]
        for one in made:
            one.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
            for name in ("tokenizer", "tokenizer_2"):  # one tokenizer in two threads mixes up its padding
                setattr(one, name, copy.deepcopy(getattr(pipe, name)))
            one.set_progress_bar_config(disable=True)
        return made

    def test_make_the_pictures_they_make_alone_also_in_turns_and_threads(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        jobs = [(PROMPT, 0), (OTHER, 1)]
        alone = [sample(pipe, prompt, seed=seed) for prompt, seed in jobs]
        copies = self.copies(pipe)
        in_turn = [sample(one, prompt, seed=seed) for one, (prompt, seed) in zip(copies, jobs, strict=True)]
        assert [difference(a, b) for a, b in zip(in_turn, alone, strict=True)] == [0, 0]
        found = {}
        threads = [
            threading.Thread(target=lambda k=k, one=one: found.update({k: sample(one, jobs[k][0], seed=jobs[k][1])}))
            for k, one in enumerate(copies)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [difference(found[k], alone[k]) for k in range(2)] == [0, 0]
        assert copies[0].transformer.report(copies[0]).words[0].prompt == PROMPT
        assert copies[1].transformer.report(copies[1]).words[0].prompt == OTHER

    def test_one_used_in_two_threads_at_once_is_an_error_in_one_of_them(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle, Dense())
        errors, entered, leave = [], threading.Event(), threading.Event()

        def wait(own, i, t, kwargs):
            entered.set()
            leave.wait(30)
            return kwargs

        def first():
            try:
                from_embeddings(pipe, given, callback=wait)
            except ax.InputError as error:
                errors.append(error)

        given = encoded(pipe, PROMPT)
        thread = threading.Thread(target=first)
        thread.start()
        entered.wait(30)
        sample(pipe, OTHER)
        leave.set()
        thread.join()
        assert len(errors) == 1 and "a pipeline makes one picture at a time" in str(errors[0])


class TestAStandIn:
    def test_keeps_somebodys_encode_prompt_and_gives_it_back(self, pipe, shapes_bundle):
        original, calls = pipe.encode_prompt, []

        def wrapper(*args, **kwargs):
            calls.append(1)
            return original(*args, **kwargs)

        pipe.encode_prompt = wrapper
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        sample(pipe)
        assert calls == [1] and report_of(pipe).words[0].prompt == PROMPT
        ax.restore(pipe)
        assert pipe.encode_prompt is wrapper

    @pytest.mark.parametrize("first", ["accelerate", "offload"])
    def test_moves_between_devices_with_the_other_components(self, pipe, shapes_bundle, first):
        expected = accelerated_sample(pipe, shapes_bundle)
        ax.restore(pipe)
        if first == "offload":
            pipe.enable_model_cpu_offload(device="cpu")
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        if first == "accelerate":
            pipe.enable_model_cpu_offload(device="cpu")
        # Weights that were moved lie elsewhere in memory, where sums may be rounded otherwise.
        assert max(difference(sample(pipe), expected) for _ in range(2)) < 1e-4, "the second picture too"
        ax.restore(pipe)
        sample(pipe, steps=1)

    @pytest.mark.parametrize("compiled", ["before", "after"])
    def test_is_compiled_already(self, pipe, shapes_bundle, compiled):
        expected = accelerated_sample(pipe, shapes_bundle)
        ax.restore(pipe)
        if compiled == "before":
            pipe.transformer = torch.compile(pipe.transformer)
        own = pipe.transformer
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        if compiled == "after":
            pipe.transformer = torch.compile(pipe.transformer)
        assert difference(sample(pipe), expected) == 0
        assert report_of(pipe).weights.startswith("the pipeline's own")
        assert ax.restore(pipe).transformer is own

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    @pytest.mark.parametrize("policy", [AccelAes(), Drift(budget=6, mask_weight=1.0, mask_step=2)])
    def test_does_not_depend_on_torchs_default_type(self, pipe, shapes_bundle, dtype, policy):
        expected = accelerated_sample(pipe, shapes_bundle, policy)
        torch.set_default_dtype(dtype)
        try:
            assert difference(sample(pipe), expected) == 0
        finally:
            torch.set_default_dtype(torch.float32)

    def test_is_asked_for_its_parameters_like_any_module(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle)
        parameter = next(pipe.transformer.parameters())
        assert (parameter.dtype, parameter.device) == (torch.float32, torch.device("cpu"))
        assert parameter.numel() == 0 and pipe.dtype == torch.float32

    def test_gives_back_a_transformer_of_the_type_the_pipeline_was_cast_to(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle)
        pipe.to(torch.float64)
        assert ax.restore(pipe).transformer.dtype == torch.float64

    def test_is_saved_as_what_it_stands_for_or_not_at_all(self, pipe, shapes_bundle, tmp_path):
        own = pipe.transformer
        ax.accelerate(pipe, shapes_bundle)
        pipe.save_pretrained(tmp_path / "saved")
        saved = type(own).from_pretrained(tmp_path / "saved" / "transformer")
        assert all(torch.equal(value, saved.state_dict()[name]) for name, value in own.state_dict().items())
        assert pipe.transformer is not own, "still on the bundle"
        assert "save_pretrained" not in vars(ax.restore(pipe))
        pipe.transformer = None
        ax.accelerate(pipe, shapes_bundle)
        with pytest.raises(ax.InputError, match="no whole pipeline to save"):
            pipe.save_pretrained(tmp_path / "half")
        assert not (tmp_path / "half").exists()

    def test_takes_options_that_ask_for_nothing(self, pipe, shapes_bundle):
        expected = accelerated_sample(pipe, shapes_bundle)
        assert difference(sample(pipe, joint_attention_kwargs={"scale": 1.0}), expected) == 0
        with pytest.raises(ax.InputError, match="no input for scale"):
            sample(pipe, joint_attention_kwargs={"scale": 0.5})

    def test_blames_adapters_for_adapters_alone(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle)
        with pytest.raises(AttributeError, match="has no enable_cache; ax.restore"):
            pipe.transformer.enable_cache(None)
        with pytest.raises(AttributeError, match="has no load_lora_adapter .*can't be added to an engine"):
            pipe.transformer.load_lora_adapter({})

    def test_serves_subclasses_and_loops_of_the_users_own(self, pipe, shapes_bundle):
        class Mine(type(pipe)):
            def __call__(self, prompt, **options):
                return super().__call__(prompt, **options)

        expected = accelerated_sample(pipe, shapes_bundle)
        mine = Mine(**ax.restore(pipe).components)
        mine.set_progress_bar_config(disable=True)
        ax.accelerate(mine, shapes_bundle, AccelAes())
        assert difference(sample(mine), expected) == 0
        given = encoded(mine, PROMPT)
        latents = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
        mine.scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for t in mine.scheduler.timesteps:
                both = mine.transformer(
                    torch.cat([latents] * 2),
                    timestep=t.expand(2),
                    encoder_hidden_states=torch.cat([given["negative_prompt_embeds"], given["prompt_embeds"]]),
                    pooled_projections=torch.cat(
                        [given["negative_pooled_prompt_embeds"], given["pooled_prompt_embeds"]]
                    ),
                    return_dict=False,
                )[0]
                uncond, cond = both.chunk(2)
                latents = mine.scheduler.step(uncond + 4.5 * (cond - uncond), t, latents, return_dict=False)[0]
        assert (latents - expected[-1]).abs().max() == 0
        assert report_of(mine).words[0].prompt == PROMPT and report_of(mine).notes == ()

    def test_can_not_be_copied_or_pickled(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle)
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(ax.InputError, match="can't be copied or pickled"):
                copied(pipe.transformer)

    @pytest.mark.parametrize("steps", [1, 2, 3, 5])
    @pytest.mark.parametrize("policy", [AccelAes(), Drift(budget=6, mask_weight=1.0, mask_step=5)])
    def test_runs_too_short_for_the_policy_are_dense_and_say_so(self, pipe, shapes_bundle, steps, policy):
        expected = sample(pipe, steps=steps)
        ax.accelerate(pipe, shapes_bundle, policy)
        assert difference(sample(pipe, steps=steps), expected) < 1e-4
        report = report_of(pipe)
        assert report.policy == "dense" and f"can't plan {steps} steps" in report.notes[0]
        ax.accelerate(pipe, shapes_bundle, policy, strict=True)
        with pytest.raises(ax.InputError, match=r"mask_step|number of steps"):
            sample(pipe, steps=steps)


class TestBundlesOfSeveralSizes:
    @pytest.fixture(scope="class")
    def wide(self, tmp_path_factory):
        """The shipped checkpoint for pictures of 32 x 64 pixels."""
        options = {"model": "shapes", "resolution": (32, 64), "buckets": "0.25,0.5", "verify": False}
        return ax.build(**options, output=tmp_path_factory.mktemp("wide") / "shapes")

    def test_a_call_runs_on_the_one_of_its_size(self, pipe, shapes_bundle, wide):
        made = {}
        for bundle, size in ((shapes_bundle, {}), (wide, {"height": 32, "width": 64})):
            ax.accelerate(pipe, bundle, "accelaes")
            made[bundle.path] = sample(pipe, **size)
        ax.accelerate(pipe, [wide, shapes_bundle], "accelaes")
        for bundle, size in ((shapes_bundle, {}), (wide, {"height": 32, "width": 64})) * 2:
            assert difference(sample(pipe, **size), made[bundle.path]) == 0
            assert report_of(pipe).tokens == bundle.manifest.geometry.contract.tokens
        with pytest.raises(ax.InputError, match="height=32, width=64; height=48, width=48: call the pipeline"):
            sample(pipe, height=64, width=32)
        assert difference(sample(pipe), made[shapes_bundle.path]) == 0

    def test_what_is_no_set_of_sizes_is_refused_and_the_pipeline_left_as_it_was(self, pipe, shapes_bundle, wide):
        own = pipe.transformer
        source = wide.manifest.source.model_copy(update={"weights_sha256": "f" * 64})
        other = ax.Bundle(wide.path, wide.manifest.model_copy(update={"source": source}))
        for given, said in (
            ([], "give a bundle"),
            ([shapes_bundle, "shapes"], "give a bundle"),
            ([shapes_bundle, shapes_bundle], "Two bundles were given for 48 x 48"),
            ([shapes_bundle, other], "has the weights"),
        ):
            with pytest.raises(ax.InputError, match=said):
                ax.accelerate(pipe, given)
            assert pipe.transformer is own
