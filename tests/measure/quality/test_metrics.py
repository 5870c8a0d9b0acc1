"""Metrics by name: built in, a caller's own, and those that aren't there."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from accelaes_export.errors import InputError, MissingComponentError
from accelaes_export.measure.quality.metric_names import BUILT_IN, check_names, load_metrics
from accelaes_export.measure.quality.metrics import Metric

CPU = torch.device("cpu")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with none of the optional libraries, nor CLIP's weights."""
    for module in ("torchmetrics.functional.image", "torchmetrics.image.lpip", "imscore.imreward.model"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("imscore.hps.model", "imscore.aesthetic.model"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("accelaes_export.measure.quality.preferences.CLIP_MODEL", "nobody/nothing")
    monkeypatch.setattr("accelaes_export.measure.quality.preferences.clip_score.__defaults__", ("nobody/nothing",))


LIBRARIES = {"ssim", "lpips", "clip", "image-reward", "hpsv2", "aesthetic"}
"""Metrics that need more than this package, none of which is there in a `bare` world."""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the caller's."""
    module = ModuleType("mine")
    module.BRIGHT = Metric("bright", lambda sample: 1.0)  # type: ignore[attr-defined]
    module.ALL = [module.BRIGHT, Metric("dark", lambda sample: 0.0)]  # type: ignore[attr-defined]
    module.OTHER = "no metric"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


@pytest.mark.usefixtures("bare")
def test_by_default_everything_there_is_and_what_is_not_is_named_with_its_remedy() -> None:
    metrics, absent = load_metrics(None, CPU)
    there = [metric.name for metric in metrics]
    assert {"psnr", "edges"} <= set(there) and not LIBRARIES & set(there)
    assert [one.name for one in absent] == [name for name in BUILT_IN if name not in there]
    assert all(one.reason and ("pip install" in one.remedy or "hf download" in one.remedy) for one in absent)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_a_metric_asked_for_by_name_that_is_not_there_stops_the_evaluation(name: str) -> None:
    with pytest.raises(MissingComponentError, match=f"^Metric {name}: .*; .*$"):
        load_metrics(["psnr", name], CPU)


def test_metrics_of_ones_own_are_given_as_module_and_attribute(own: ModuleType) -> None:
    metrics, absent = load_metrics(["mine:ALL", "edges"], CPU)
    assert ([metric.name for metric in metrics], absent) == (["bright", "dark", "edges"], [])
    assert load_metrics(["mine:BRIGHT"], CPU)[0] == [own.BRIGHT]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["magic"], "There is no metric 'magic'; allowed are psnr, ssim"),
        (["psnr", "psnr"], "Metric psnr is given twice"),
        (["mine:"], "There is no metric 'mine:'"),
        (["../mine:ALL"], "There is no metric '../mine:ALL'"),
        (["nowhere.to.be:FOUND"], "can't be imported"),
        (["mine:NOTHING"], "module mine has no NOTHING"),
        (["mine:OTHER"], "is str; give a Metric"),
        (["mine:ALL", "mine:BRIGHT"], "Two metrics are named bright"),
    ],
)
@pytest.mark.usefixtures("own")
def test_what_is_no_metric_is_one_sentence(names: list[str], said: str) -> None:
    with pytest.raises(InputError, match="^[^\n]*$") as caught:
        load_metrics(names, CPU)
    assert said in str(caught.value)


def test_names_are_checked_without_importing_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail("imported"))
    check_names(["psnr", "some.module:METRIC"])


def test_a_metrics_name_is_a_plain_word() -> None:
    for name in ("", "two words", "-x", "a,b", 'a"b'):
        with pytest.raises(InputError, match="letters, digits"):
            Metric(name, lambda sample: 1.0)
