"""The reference for steps that leave blocks out: hooks on an unmodified diffusers model, which computes every block."""

from __future__ import annotations

import inspect

import torch


def blocks_of(model):
    """All transformer blocks of a model in order: what is in its module lists and attends."""
    lists = [part for part in model.children() if isinstance(part, torch.nn.ModuleList)]
    return [block for part in lists for block in part if any("attn" in name for name, _ in block.named_children())]


def taken(block, args, kwargs):
    """The streams a block is called with, the text's first where it returns two."""
    arguments = inspect.signature(block.forward).bind(*args, **kwargs).arguments
    return arguments.get("encoder_hidden_states"), arguments["hidden_states"]


class Change:
    """Watches a range in one call of the model: by how much each of its blocks moves each stream, summed."""

    def __init__(self, blocks):
        self.blocks, self.image, self.text = blocks, 0, 0

    def watch(self, block, args, kwargs, output):
        text, image = taken(block, args, kwargs)
        if isinstance(output, tuple):
            self.image = self.image + output[1] - image
            self.text = None if output[0] is None or self.text is None else self.text + output[0] - text
        else:
            self.image = self.image + output - image

    def replay(self, block, args, kwargs, output):
        """In place of what the block computed: its input, and the whole change at the first block."""
        text, image = taken(block, args, kwargs)
        first = block is self.blocks[0]
        image = image + self.image if first else image
        if not isinstance(output, tuple):
            return image
        return (text if self.text is None or not first else text + self.text), image

    def hooks(self, what):
        return [(block, getattr(self, what)) for block in self.blocks]
