"""Every kind of family natively: both forms, guidance by a second call or none, videos, labels, batches."""

from __future__ import annotations

import pytest

from accelaes_export import recipes
from accelaes_export.building.builder import build
from tests.families import FAMILIES
from tests.native.building import ONNXRUNTIME
from tests.native.reference import setting
from tests.native.test_runs import require_same
from tests.thorough import thorough_but

RECIPES = {
    "sd3": "sd3",
    "flux": "flux-dev",
    "pixart": "pixart-alpha",
    "lumina": "lumina-next",
    "dit": "dit-xl-2",
    "wan": "wan2.1-1.3b",
    "qwen-image": "qwen-image",
    "ltx": "ltx-video",
}
CASES = [
    ("sd3", "component", 3, "drift:budget=8:cache_reach=0.5:mask_weight=0.5"),
    ("sd3", "token", 2, "accelaes:mask_step=1:warmup=2:spatial_cfg={focus: 4, background: 2}"),
    ("flux", "token", 2, "drift:budget=8"),
    ("pixart", "token", 1, "accelaes:mask_step=1:warmup=2"),
    ("lumina", "token", 2, "ras"),
    ("dit", "token", 2, "drift:budget=8:cache_reach=0.5"),
    ("qwen-image", "token", 2, "drift:budget=8"),  # whose guided predictions are scaled
    ("wan", "token", 2, "drift:budget=8:cache_reach=0.5"),
]


@pytest.mark.parametrize(("family", "form", "batch", "policy"), thorough_but([CASES[0], CASES[-2]], CASES))
def test_a_run_goes_as_in_python(native, tmp_path, family, form, batch, policy):
    tiny = FAMILIES[family]
    variant = next(iter(tiny.variants))
    recipe = recipes.load(RECIPES[family])
    changes = {
        "transformer_config": tiny.full_config(variant),
        "text": tuple(s.model_copy(update={"length": tiny.text_tokens}) for s in recipe.text[:1]),
        "vae_scale": tiny.vae_scale,
        "affinity_blocks": None,
        "policy": recipes.PolicyChoice(name="dense"),
        "plans": {},
    }
    bundle = build(
        model=recipe.model_copy(update=changes),
        random_weights=True,
        output=tmp_path / "bundle",
        dtype="fp32",
        form=form,
        batch=batch,
        buckets=(0.25, 0.5),
        frames=tiny.frames,
        resolution=tiny.resolutions[0],
        presets=[policy],
    )
    opened = native.open(bundle.path, library=str(ONNXRUNTIME).encode(), threads=1)
    preset = bundle.preset(policy)
    for images in {1, batch}:
        for guided in (True, False):
            given = setting(bundle, preset, "DDDb.aD.b", seed=images, images=images, guided=guided, scale=3.0)
            assert require_same(bundle, opened, given) == given.plan
    opened.close()
