"""The judge: a small classifier that reads back from a picture what stands where.

It shares nothing with the generator but the drawings it learned from. One network looks at a 22x22 window around
each of the five positions and names the object centred there, if any; a second reads the background.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from examples.shapes.autoencoder import decode_latents, encode_pictures
from examples.shapes.drawing import CENTRES, draw
from examples.shapes.scenes import (
    AESTHETICS,
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    training_scenes,
)

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parent / "judge.safetensors"
WINDOW = 22  # as wide as the outer positions allow
BATCH = 32
FIELDS = {"shape": (*SHAPES, "nothing"), "colour": COLOURS, "size": SIZES, "aesthetic": AESTHETICS}
GROUND_FIELDS = {"background": BACKGROUNDS, "graded": (False, True)}
IGNORED = -100  # cross_entropy's mark for "no object here, so no colour to learn"


@dataclass(frozen=True)
class Reading:
    """What the judge sees: for each occupied position its words, and the background."""

    items: dict[str, dict[str, str]]  # position -> {"shape": ..., "colour": ..., "size": ..., "aesthetic": ...}
    background: str
    graded: bool


class Judge(nn.Module):
    """Pictures [B, 3, 48, 48] to logits: each of FIELDS [B, 5, classes], each of GROUND_FIELDS [B, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            *_stage(3, 24),
            nn.MaxPool2d(2),
            *_stage(24, 48),
            nn.MaxPool2d(2),
            *_stage(48, 64),
            *_stage(64, 64),
            nn.Flatten(),
            nn.Linear(64 * (WINDOW // 4) ** 2, 128),
            nn.GELU(),
        )
        self.name = nn.ModuleDict({field: nn.Linear(128, len(words)) for field, words in FIELDS.items()})
        self.ground = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 64), nn.GELU())
        self.name_ground = nn.ModuleDict({field: nn.Linear(64, len(words)) for field, words in GROUND_FIELDS.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = self.look(_windows(pictures).flatten(0, 1)).unflatten(0, (len(pictures), len(POSITIONS)))
        ground = self.ground(pictures)
        logits = {field: head(seen) for field, head in self.name.items()}
        return logits | {field: head(ground) for field, head in self.name_ground.items()}


def _stage(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.GELU()]


def _windows(pictures: torch.Tensor) -> torch.Tensor:
    """The window around each position, [B, 5, 3, 22, 22]."""
    half = WINDOW // 2
    corners = [(CENTRES[position][0] - half, CENTRES[position][1] - half) for position in POSITIONS]
    return torch.stack([pictures[:, :, y : y + WINDOW, x : x + WINDOW] for x, y in corners], dim=1)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """[B]: how differently pictures [B, 3, 48, 48] look to the judge, before it names anything: the root mean square of
    its features' differences over those of the wanted. What layer-wise schedules can be learned by."""
    model = load()

    def features(pictures: torch.Tensor) -> torch.Tensor:
        windows = _windows(pictures)
        seen = model.look(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        return torch.cat([seen.flatten(1), model.ground(pictures)], dim=1)

    own, theirs = features(found), features(wanted)
    return (own - theirs).norm(dim=1) / theirs.norm(dim=1).clamp_min(1e-6)


def classes(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """Ground truth as class indices, in the shapes of the judge's logits without their last axis."""
    truth = {field: torch.full((len(scenes), len(POSITIONS)), IGNORED) for field in FIELDS}
    truth["shape"].fill_(FIELDS["shape"].index("nothing"))
    for row, scene in enumerate(scenes):
        for item in scene.items:
            for field, words in FIELDS.items():
                truth[field][row, POSITIONS.index(item.position)] = words.index(getattr(item, field))
    for field, words in GROUND_FIELDS.items():
        truth[field] = torch.tensor([words.index(getattr(scene, field)) for scene in scenes])
    return truth


def train_judge(vae: AutoencoderKL, steps: int, seed: int) -> Judge:
    """Train on fresh drawings; half of each batch went through the autoencoder, with noise on its latents."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    scenes = training_scenes(steps * BATCH, seed=10_000 + seed)
    model = Judge().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    for step in range(steps):
        batch = scenes[step * BATCH : (step + 1) * BATCH]
        pictures = worn(vae, draw(batch, generator)[0], generator)
        truth = classes(batch)
        logits = model(pictures)
        loss = sum(functional.cross_entropy(logits[field].flatten(0, -2), truth[field].flatten()) for field in logits)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log.info("judge step %d loss %.4f %.0f s", step, loss, time.monotonic() - started)
    return model.eval().requires_grad_(False)


def worn(vae: AutoencoderKL, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Make drawings look generated: half of them pass through noisy latents, all get a little blur and grain."""
    pictures = pictures.clone()
    half = len(pictures) // 2
    latents = encode_pictures(vae, pictures[:half])
    strength = 0.25 * torch.rand(half, 1, 1, 1, generator=generator)
    pictures[:half] = decode_latents(vae, latents + strength * torch.randn(latents.shape, generator=generator))
    blurred = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = 0.6 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    grain = 0.04 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return pictures.lerp(blurred, amount) + grain * torch.randn(pictures.shape, generator=generator)


@torch.no_grad()
def read(model: Judge, pictures: torch.Tensor) -> list[Reading]:
    """What the judge sees in pictures [B, 3, 48, 48] in [-1, 1]."""
    found = {field: logits.argmax(dim=-1).tolist() for field, logits in model(pictures).items()}
    readings = []
    for row in range(len(pictures)):
        items = {
            position: {field: words[found[field][row][slot]] for field, words in FIELDS.items()}
            for slot, position in enumerate(POSITIONS)
            if FIELDS["shape"][found["shape"][row][slot]] != "nothing"
        }
        background, graded = (words[found[field][row]] for field, words in GROUND_FIELDS.items())
        readings.append(Reading(items, background, graded))
    return readings


def save(model: Judge, path: Path = WEIGHTS) -> None:
    """Write the weights as float16 safetensors."""
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, path)
    path.chmod(0o644)  # safetensors writes for the owner alone


def load(path: Path = WEIGHTS) -> Judge:
    """The trained judge, computing in float32."""
    model = Judge()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return model.eval().requires_grad_(False)
