"""A denoiser on a tiny SD3 model whose session remembers what was in focus."""

from __future__ import annotations

from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.runtime.denoiser import Denoiser
from accelaes_export.runtime.step_inputs import StepInputs
from tests.eager_session import EagerSession
from tests.tiny_sd3 import SD3, tiny_config, tiny_step, tiny_transformer

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
BUCKETS = FRACTIONS[:-1]
N = 48
CONFIG = tiny_config(num_layers=2)


class Watched(EagerSession):
    """Remembers the focus index of every call."""

    def run(self, inputs, outputs, workspace=None):
        self.focus = [*getattr(self, "focus", []), inputs["focus_index"].clone()]
        super().run(inputs, outputs)


def make(batch=1, form="token", guidance=SD3.guidance):
    step = tiny_step(CONFIG, [0, 1], tiny_transformer(CONFIG), batch=batch, form=form)
    session = Watched(step)
    return Denoiser(session, step.latents, FRACTIONS, guidance), session


def conditions(denoiser, seed, rows, paired=True):
    inputs = example_inputs(denoiser.session.contract, denoiser.latents.tokens, B=rows, seed=seed)
    conditioning = {name: inputs[name] for name in denoiser.session.contract.conditioning}
    return StepInputs(inputs["hidden_states"], inputs["timestep"], conditioning, paired)
