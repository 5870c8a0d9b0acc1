"""Profiles and evaluations made up for the page, and the page read back with the standard library's parser."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

from accelaes_export.measure.profiling.report import (
    AbsentPeer,
    BucketProfile,
    Ceilings,
    DenoiseProfile,
    Kernel,
    Part,
    ProfileReport,
    Runtime,
    Spread,
    StepKindTime,
)
from accelaes_export.measure.quality.report import (
    DENSE,
    AbsentMetric,
    ImageRow,
    Interval,
    MetricAbout,
    PolicyQuality,
    QualityReport,
    Words,
)

HOSTILE = '</script><img src=x onerror="alert(1)">&amp;\'{{ 7 * 7 }}<!-- ]]> \u2028 https://example.org//x'
VOID = {"meta", "img", "input", "br", "hr", "link"}


@dataclass
class Element:
    """One start tag: its name, attributes, the text directly and indirectly inside, and the elements around it."""

    tag: str
    attributes: dict[str, str | None]
    around: tuple[Element, ...]
    text: str = ""

    def has(self, name: str) -> bool:
        return name in (self.attributes.get("class") or "").split()


@dataclass
class Page(HTMLParser):
    """A parsed page; every element that is opened must be closed in its turn."""

    html: str
    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[Element] = []
        self.feed(self.html)
        self.close()
        optional = [element.tag for element in self._open]
        assert not optional, f"never closed: {optional}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), tuple(self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].tag == tag, f"</{tag}> closes {self._open[-1].tag if self._open else '-'}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str, name: str | None = None) -> list[Element]:
        return [e for e in self.elements if e.tag == tag and (name is None or e.has(name))]

    def rows(self, caption: str) -> dict[str, list[str]]:
        """Cells by the row's head, of the table in the region called `caption`."""
        inside = [e for e in self.elements if any(a.attributes.get("aria-label") == caption for a in e.around)]
        found: dict[str, list[str]] = {}
        for element in inside:
            if element.tag == "th" and element.attributes.get("scope") == "row":
                head = element.text if element.text not in found else f"{element.text} again"
                found[head] = []
            elif element.tag == "td":
                found[head].append(element.text)
        return found


def spread(median: float, width: float = 0.1) -> Spread:
    return Spread(median=median, p10=median * (1 - width), p90=median * (1 + width), minimum=median / 2, count=5)


def bucket(n: int, seconds: float, flops_of_dense: float) -> BucketProfile:
    return BucketProfile(
        n=n,
        fraction=n / 16,
        first_seconds=2 * seconds,
        seconds=spread(seconds),
        rounds=(seconds,) * 5,
        of_dense=spread(seconds / 0.04),
        flops=int(1e9 * flops_of_dense),
        flops_of_dense=flops_of_dense,
        of_limit=flops_of_dense * 0.04 / seconds,
        flops_per_second=1e9 * flops_of_dense / seconds,
        of_ceiling=0.25,
        buffer_bytes=123_000,
        scratch_bytes=0,
        used_bytes=10**9,
        kernels=(Kernel(name=HOSTILE, calls=3, seconds=seconds / 4),),
        kernels_from="hand",
    )


def denoise(name: str, plan: str, seconds: float, limit: float | None, images: int = 1) -> DenoiseProfile:
    dense = {1: 0.4, 4: 1.2}[images]
    own = limit is not None
    return DenoiseProfile(
        name=name,
        settings={"note": HOSTILE},
        images=images,
        plan=plan,
        engine_calls=len(plan),
        first_seconds=1.0,
        seconds=spread(seconds),
        rounds=(seconds,) * 5,
        images_per_second=images / seconds,
        dense_over_this=spread(dense / seconds),
        flop_cost=None if limit is None else len(plan) / limit,
        flop_limit=limit,
        of_limit=None if limit is None else dense / seconds / limit,
        kinds=(StepKindTime(kind="DENSE", n=16, count=6, seconds=spread(0.04)),) if own else (),
        runtime=Runtime(
            seconds_per_step=spread(0.001),
            of_dense_step=0.025,
            loop_seconds_per_step=spread(0.0001),
            host_seconds=spread(seconds),
            host_waits=0,
        )
        if own
        else None,
        full_computes=None if own else 6,
        wanted_computes=None if own else 6,
        versions={} if own else {"torch": "2.13"},
    )


def profile_report(**changes: Any) -> ProfileReport:
    """N = 16, three buckets, three policies and a peer, batches 1 and 4; texts from outside are hostile."""
    report = ProfileReport(
        created_by="accelaes-export 0.1.0",
        created="2026-01-02T03:04:05+00:00",
        bundle={
            "path": HOSTILE,
            "model": HOSTILE,
            "form": "token",
            "backend": "onnxruntime",
            "dtype": "fp32",
            "rows": 2,
            "tokens": 16,
            "layers": 2,
            "weights": "random",
        },
        request={"iterations": 5, "batches": [1, 4]},
        machine={"cpu": HOSTILE, "threads": 1, "memory_bytes": 16e9, "versions": {"torch": "2.13"}},
        notes=(HOSTILE,),
        ceilings=Ceilings(
            dtype="fp32", matmul_flops_per_second=1e11, matmul_size=64, copy_bytes_per_second=1e10, copy_bytes=1000
        ),
        open_seconds=0.25,
        buckets=(bucket(4, 0.02, 0.25), bucket(8, 0.03, 0.5), bucket(16, 0.04, 1.0)),
        policies=tuple(
            denoise(name, plan, seconds * times, limit, images)
            for images, times in ((1, 1.0), (4, 3.0))
            for name, plan, seconds, limit in (
                ("dense", "DDDDDDDDDDDD", 0.4, 1.0),
                ("accelaes", "DDDDDDb.Da.D", 0.25, 2.0),
                (HOSTILE, "DD.D.D.D.D.D", 0.3, 1.5),
            )
        ),
        peers=(denoise("eager peer", "DDDDDDDDDDDD", 0.5, None),),
        absent=(AbsentPeer(name="absent peer", reason=HOSTILE, remedy="pip install it"),),
        parts=(Part(name="vae", calls=1, first_seconds=0.2, seconds=spread(0.1)),),
    )
    return report.model_copy(update=changes)


def interval(value: float, width: float = 0.1) -> Interval:
    return Interval(value=value, low=value - width, high=value + width, pictures=2, prompts=2)


POLICIES = (
    (DENSE, 12.0, None, None),
    ("accelaes", 6.0, 30.0, 1.8),
    (HOSTILE, 8.0, 28.0, 1.3),
    ("drift:budget=8", 8.0, 36.0, 1.4),
)
"""Label, cost, PSNR, time ratio: the third is beaten in both by the others, and no other is."""


def quality_report() -> QualityReport:
    policies = [
        PolicyQuality(
            label=label,
            name=label.partition(":")[0],
            settings={"note": HOSTILE},
            steps=12,
            plan="DDDDDDDDDDDD" if label == DENSE else "DDDDDDb.Da.D",
            plans=1,
            pictures=4,
            token_cost=interval(cost, 0.0),
            flop_cost=interval(cost, 0.0),
            seconds=interval(0.4),
            denoise_seconds=interval(0.3),
            time_ratio=None if times is None else interval(times),
            denoise_ratio=None if times is None else interval(times),
            metrics={"edges": interval(0.05, 0.01)} | ({} if psnr is None else {"psnr": interval(psnr, 2.0)}),
            differences={} if label == DENSE else {"edges": interval(-0.001, 0.0005)},
        )
        for label, cost, psnr, times in POLICIES
    ]
    about = {"pooled": "mean", "source": HOSTILE}
    return QualityReport(
        created_by="accelaes-export 0.1.0",
        created="2026-01-02T03:04:05+00:00",
        bundle={"model": "fake", "form": "token", "dtype": "fp32", "backend": "onnxruntime"},
        request={"prompts": [HOSTILE, HOSTILE], "seeds": [1, 2], "steps": 12},
        machine={"cpu": "a CPU"},
        attempts=1,
        resamples=100,
        policies=tuple(policies),
        metrics=(
            MetricAbout(name="psnr", title="PSNR", better="higher", unit="dB", to_dense=True, **about),
            MetricAbout(name="edges", title="edges", better="neither", unit="", to_dense=False, **about),
        ),
        absent=(AbsentMetric(name="clip", reason="its weights aren't there", remedy=HOSTILE),),
    )


def rows(folder: Path, prompts: int = 2, side: int = 32, grain: int = 8) -> tuple[ImageRow, ...]:
    """A picture and a row for every policy, prompt and two seeds; files are in `folder`, rows in no order.

    Pictures are noise with spots of `grain` pixels, the same every time.
    """
    (folder / "pictures").mkdir(exist_ok=True)
    found = []
    for index in range(prompts):
        for seed in (2, 1):
            for k, (label, cost, psnr, _) in enumerate(POLICIES):
                name = f"pictures/{k}-{index}-{seed}.png"
                spots = random.Random(name).randbytes((side // grain) ** 2)
                noise = Image.frombytes("L", (side // grain, side // grain), spots).resize((side, side))
                Image.merge("RGB", (noise, noise.transpose(Image.Transpose.ROTATE_90), noise)).save(folder / name)
                masked = label == "accelaes"
                found.append(
                    ImageRow(
                        policy=label,
                        prompt_index=index,
                        prompt=f"{HOSTILE} {index}",
                        seed=seed,
                        file=name,
                        steps=12,
                        plan="DDDDDDb.Da.D",
                        token_cost=cost,
                        flop_cost=cost,
                        seconds=0.4,
                        denoise_seconds=0.3,
                        attempt=0,
                        metrics={} if psnr is None else {"psnr": psnr + index},
                        words=Words(scorer="lexical", fallback=False, words=("red", HOSTILE), weights=(0.25, 1.0))
                        if masked
                        else None,
                        focus_index=(0, 1, 4, 5) if masked else None,
                        affinity=tuple(float(token) for token in range(16)) if masked else None,
                    )
                )
    return tuple(reversed(found))
