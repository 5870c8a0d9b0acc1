"""Bundles that earlier releases wrote still open. The manifests are those of their builds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from accelaes_export.bundle.reading import MANIFEST, open_bundle
from accelaes_export.cli import main
from accelaes_export.errors import BundleError
from accelaes_export.runtime.policy_choice import policy_for

OLD = dict(sorted((int(path.stem), path) for path in (Path(__file__).parent / "schemas").glob("*.json")))


@pytest.fixture(params=OLD)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with that manifest, and files of the sizes it tells of."""
    text = OLD[request.param].read_text()
    (tmp_path / MANIFEST).write_text(text)
    for name, record in json.loads(text)["files"].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(record["size"])
    return tmp_path


def test_every_older_schema_is_here():
    assert list(OLD) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_an_older_bundle_opens_and_has_a_policy_and_a_plan(bundle):
    manifest = open_bundle(bundle, check_hashes=False).manifest
    assert "StableDiffusion3Pipeline" in manifest.call.pipelines and manifest.call.guidance.layout == "uncond_cond"
    policy = policy_for(manifest)
    assert str(policy.plan(manifest.defaults.steps, manifest.sparse_fractions)) == manifest.defaults.plan


def test_plans_that_a_model_brought_before_they_had_coefficients_are_read(bundle):
    data = json.loads((bundle / MANIFEST).read_text())
    if data["schema_version"] > 9 or "plans" not in data["defaults"]:
        return
    for part in (data["defaults"], data["recipe"]):
        part["plans"] = {"3.0": {"symbols": "DDb.D", "theta": 0.3, "trend": 1.0, "cache_reach": 0.5}}
    (bundle / MANIFEST).write_text(json.dumps(data))
    (plan,) = open_bundle(bundle, check_hashes=False).manifest.defaults.plans.values()
    assert (plan.symbols, plan.coefficients, plan.quality) == ("DDb.D", None, None)


def test_an_older_bundle_can_be_inspected(bundle):
    result = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert result.exit_code == 0, result.stderr


def test_a_damaged_older_one_is_still_refused(bundle):
    data = json.loads((bundle / MANIFEST).read_text())
    data.pop("pipelines", None)
    data.get("call", {}).pop("pipelines", None)
    (bundle / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BundleError, match="pipelines"):
        open_bundle(bundle, check_hashes=False)


def test_arguments_that_an_engine_has_one_value_of_are_found_where_older_manifests_have_them(bundle):
    data = json.loads((bundle / MANIFEST).read_text())
    fixed = {"base_sequence_length": 16} if "call" in data else {}  # the first schema had none
    if "geometries" in data:
        data["geometries"][0]["fixed"] = fixed
    elif fixed:
        data["call"]["fixed"] = fixed
    (bundle / MANIFEST).write_text(json.dumps(data))
    assert open_bundle(bundle, check_hashes=False).manifest.geometry.fixed == fixed
