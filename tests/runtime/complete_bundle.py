"""What holds of every family's bundle that has its pipeline's components: it draws alone, as its checkpoint does."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from accelaes_export.building.verification import verify
from accelaes_export.policies import from_name
from accelaes_export.runtime.components import BundledAutoencoder, BundledTextEncoder
from accelaes_export.runtime.generate import generate, load_pipeline
from tests.native.building import ONNXRUNTIME


class CompleteBundle:
    """Sentences about the module's fixture `bundle`.

    Attributes:
        asked_for: what `generate` is asked for.
        encoders: the pipeline's text encoders.
    """

    asked_for: ClassVar[str]
    encoders: ClassVar[tuple[str, ...]]

    def test_every_component_agrees_with_the_checkpoints_and_so_does_a_picture(self, bundle):
        compared = {result.name: result for result in verify(bundle).components}
        joined = ("conditioning",) if self.encoders else ()
        names = (*self.encoders, "vae decoder", "vae decoder, as an image", "vae encoder", *joined, "a picture")
        assert tuple(compared) == names
        assert all(result.passed for result in compared.values()), compared

    def test_it_draws_without_its_checkpoint_and_without_any_model_of_it(self, bundle, monkeypatch):
        import diffusers
        import transformers

        wanted = self._image(bundle, load_pipeline(bundle, bundle.manifest.source.location))

        def refuse(*_, **__):
            pytest.fail("a model was loaded")

        for kind in (diffusers.DiffusionPipeline, diffusers.ModelMixin, transformers.PreTrainedModel):
            monkeypatch.setattr(kind, "from_pretrained", refuse)
        pipe = load_pipeline(bundle)
        for name in self.encoders:
            assert isinstance(getattr(pipe, name), BundledTextEncoder)
        assert isinstance(pipe.vae, BundledAutoencoder)
        assert np.abs(self._image(bundle, pipe) - wanted).max() <= 1, "levels of 255"

    def test_its_pictures_can_be_encoded_and_decoded_again(self, bundle):
        theirs, own = (load_pipeline(bundle, folder).vae for folder in (bundle.manifest.source.location, None))
        size = bundle.manifest.geometry.vae.encoder.inputs[0].shape[1:]
        picture = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            wanted, found = (vae.encode(picture).latent_dist.mode() for vae in (theirs, own))
            assert torch.allclose(found, wanted, atol=1e-5)
            decoded = theirs.decode(wanted).sample
            assert torch.allclose(own.decode(wanted).sample, decoded, atol=1e-5)
            assert torch.equal(own.decode(wanted, return_dict=False)[0], own.decode(wanted).sample)

    def _image(self, bundle, pipe):
        made = generate(bundle, self.asked_for, steps=4, policy=None, seed=3, pipe=pipe)
        return np.stack([np.asarray(frame) for frame in made.frames]).astype(int)


class DrawsNatively:
    """Of a bundle with presets: libaccelaes draws what Python draws, by the bundle's own scheduler."""

    unguided: ClassVar[bool] = False
    opening: ClassVar[dict[str, object]] = {"library": str(ONNXRUNTIME).encode(), "threads": 1}

    def begin(self, run, opened) -> None:
        """Give the run what `asked_for` stands for."""
        run.prompt(self.asked_for)

    def test_it_draws_natively_what_it_draws_in_python(self, bundle, native):
        opened = native.open(bundle.path, **self.opening)
        pipe, size = load_pipeline(bundle), bundle.manifest.geometry.latents.size
        assert opened.presets
        for name in opened.presets:
            own = bundle.preset(name)
            policy = from_name(own.policy, own.options)
            made = generate(bundle, self.asked_for, steps=own.steps, policy=policy, seed=3, pipe=pipe)
            wanted = np.stack([np.asarray(frame) for frame in made.frames]).astype(int)
            run = opened.run(None, None, preset=name.encode(), seed=3, unguided=self.unguided)
            self.begin(run, opened)
            symbols, more = "", True
            while more:
                step, more = run.next()
                symbols += step.symbol.decode()
            assert symbols == own.plans[own.steps], name
            (found,) = run.picture(size["height"], size["width"], frames=opened.facts.picture_frames)
            assert np.abs(found.reshape(wanted.shape).astype(int) - wanted).max() <= 1, name
            run.free()
        opened.close()
