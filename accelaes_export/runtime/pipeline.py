"""The drop-in: a diffusers pipeline whose transformer is a bundle. `accelerate` swaps it in, `restore` takes it out.

The pipeline is used as before. When it calls the transformer, who calls, for which prompt and whether for guidance is
read from the call itself, so copies of the pipeline may share the engine; the scheduler says which step of how many
this is. All of it is on the host, so the device isn't waited for.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from accelaes_export.bundle.reading import Bundle
from accelaes_export.errors import InputError
from accelaes_export.policies.base import Policy
from accelaes_export.runtime.arguments import plain
from accelaes_export.runtime.policy_choice import policy_for, policy_of_quality
from accelaes_export.runtime.prompts import told
from accelaes_export.runtime.stand_in import AcceleratedTransformer, Saving, Served, Watched, stand_in
from accelaes_export.runtime.tracker import Settings
from accelaes_export.runtime.weights import WeightComparison, which_weights

_NOT_ARCHITECTURE = frozenset({"sample_size"})


def accelerate(
    pipe: Any,
    bundle: Bundle | Sequence[Bundle],
    policy: Policy | str | None = None,
    *,
    words: str | Sequence[str] = (),
    weights: WeightComparison = "sample",
    strict: bool = False,
    quality: str | None = None,
    **options: Any,
) -> Any:
    """Give a diffusers pipeline a bundle in place of its transformer; returns the pipeline.

    Args:
        pipe: a pipeline of the bundle's family; text-to-image, img2img and inpaint alike. Its own transformer may be
            None (loaded without, to save memory) and is kept for `restore`.
        bundle: an opened bundle; it may serve many pipelines and threads at once. Several of the same weights, for
            pictures of different sizes: a call runs on the one of its size.
        policy: what to compute when; the bundle's default policy if None. By name it is the bundle's as well, with
            `options` and the bundle's plan for its budget: ``accelerate(pipe, bundle, "drift", budget=12)``.
        words: the prompts behind embeddings the pipeline will be called with, as for `words`.
        weights: how the pipeline's weights are compared with those the bundle was built from: by a sample of every
            tensor, or "all" of them; "bundle" means that the bundle's are wanted, whatever the pipeline has.
        strict: whether a run that the policy can't carry out (a scheduler that adds noise, too few steps, no known
            words for its mask) is an error. Otherwise it is dense, or has no mask, and the report says so.
        quality: "high", "balanced" or "fast", in place of a policy: the cheapest measured plan that keeps the level,
            else dense. Call the pipeline with the steps that `own_steps` of the policy says.

    Raises:
        InputError: a pipeline of another family or with a transformer of another architecture or with other weights;
            a policy's name or an option that doesn't exist.
        BundleError, MissingComponentError: the bundle's engine can't run on this machine.
    """
    bundles = tuple(bundle) if isinstance(bundle, list | tuple) else (bundle,)
    _check_together(bundles)
    manifest = bundles[0].manifest
    if not any(kind.__name__ in manifest.call.pipelines for kind in type(pipe).__mro__):
        raise InputError(
            f"A {type(pipe).__name__} was given, but this bundle serves {', '.join(manifest.call.pipelines)}; "
            "load one of these, or build a bundle of the pipeline's own family."
        )
    if getattr(pipe, "transformer_2", None) is not None:
        raise InputError(
            "This pipeline denoises with two transformers by turns (Wan 2.2), and a bundle stands for one; load a "
            "pipeline with one transformer, such as Wan 2.1."
        )
    restore(pipe)
    for one in bundles:
        _check_architecture(pipe.transformer, one)
    served = [
        Served(
            one,
            one.manifest.geometry,
            one.session(),
            _policy(one, policy, options, quality),
            which_weights(pipe, one, weights),
        )
        for one in bundles
    ]
    original, encode = pipe.transformer, getattr(pipe, "encode_prompt", None)
    settings = Settings(strict, told(words) if words else ())
    pipe.transformer = AcceleratedTransformer(pipe, served, settings, original)
    if encode is not None:
        _cover(pipe, "encode_prompt", Watched(encode, settings, weakref.ref(pipe)))
    _cover(pipe, "save_pretrained", Saving(weakref.ref(pipe)))
    _offload_again(pipe)
    if original is None:
        # The pipeline read these from its transformer when it was made.
        if "sample_size" in manifest.transformer_config:
            pipe.default_sample_size = manifest.transformer_config["sample_size"]
            if hasattr(pipe, "default_image_size"):
                pipe.default_image_size = pipe.default_sample_size * pipe.vae_scale_factor
        pipe.patch_size = manifest.geometry.latents.patch
    return pipe


def restore(pipe: Any) -> Any:
    """Put a pipeline's own transformer back; a pipeline that isn't accelerated stays as it is."""
    accelerated = stand_in(pipe)
    if accelerated is not None:
        pipe.transformer = accelerated.moved_original()
        for name in ("encode_prompt", "save_pretrained"):
            _uncover(pipe, name)
        _offload_again(pipe)
    return pipe


def _offload_again(pipe: Any) -> None:
    """Where a pipeline moves its components to the device in turns, let it know the one that is new."""
    if getattr(pipe, "_all_hooks", None):
        pipe.enable_model_cpu_offload(device=getattr(pipe, "_offload_device", None))


def _cover(pipe: Any, name: str, cover: Any) -> None:
    """Put `cover` before a method of one pipeline, over what somebody may have put there before."""
    cover.covered = vars(pipe).get(name)
    setattr(pipe, name, cover)


def _uncover(pipe: Any, name: str) -> None:
    cover = vars(pipe).get(name)
    if isinstance(cover, (Watched, Saving)):
        if cover.covered is None:
            delattr(pipe, name)  # uncovers the class's own
        else:
            setattr(pipe, name, cover.covered)


def words(pipe: Any, prompts: str | Sequence[str] | None) -> None:
    """Say which prompts are behind the embeddings that an accelerated pipeline is called with.

    Needed where they can't be known: embeddings loaded from a file, or made by another pipeline or before `accelerate`.
    Holds for all calls with embeddings nobody knows, until said otherwise.

    Args:
        pipe: an accelerated pipeline.
        prompts: the prompt of every image of a call, or one for all of them; None: not known any more.

    Raises:
        InputError: a pipeline that isn't accelerated, or anything but texts.
    """
    accelerated = stand_in(pipe)
    if accelerated is None:
        raise InputError(f"This {type(pipe).__name__} isn't accelerated; call ax.accelerate(pipe, bundle) first.")
    accelerated.settings.told = () if prompts is None else told(prompts)


def _check_together(bundles: Sequence[Bundle]) -> None:
    """InputError unless bundles are of the same weights and sort, and each of another size."""
    if not bundles or not all(isinstance(bundle, Bundle) for bundle in bundles):
        given = ", ".join(map(repr, bundles)) or "no bundle"
        raise InputError(f"{given} was given; give a bundle as ax.open(folder) returns it, or a list of them.")
    first, *others = bundles
    for bundle in others:
        for name, own, its in (
            ("weights", first.manifest.source.weights_sha256[:12], bundle.manifest.source.weights_sha256[:12]),
            ("dtype", first.manifest.geometry.contract.dtype, bundle.manifest.geometry.contract.dtype),
            ("call", first.manifest.call.signature, bundle.manifest.call.signature),
        ):
            if own != its:
                raise InputError(
                    f"Bundles for one pipeline differ in size alone, but {first.path} has the {name} {own}, and "
                    f"{bundle.path} {its}: build them from one checkpoint, alike."
                )
    sizes = [tuple(bundle.manifest.geometry.latents.size.values()) for bundle in bundles]
    twice = [size for k, size in enumerate(sizes) if size in sizes[:k]]
    if twice:
        raise InputError(f"Two bundles were given for {' x '.join(map(str, twice[0]))}; give one of every size.")


def _policy(
    bundle: Bundle, policy: Policy | str | None, options: Mapping[str, Any], quality: str | None = None
) -> Policy:
    """What this bundle is to compute when: by name with its own options and plans, or by what is promised."""
    if quality is not None:
        if policy is not None or options:
            beside = f"policy {policy}" if policy is not None else next(iter(options))
            raise InputError(
                f"quality {quality} was given beside {beside}; quality chooses the policy: give one of both."
            )
        return policy_of_quality(bundle.manifest, quality)
    if policy is None or isinstance(policy, str):
        return policy_for(bundle.manifest, policy, options)
    if options:
        raise InputError(
            f"{next(iter(options))} was given beside a policy made already; give it when making the policy, or give "
            "the policy by name."
        )
    return policy


def _check_architecture(transformer: Any, bundle: Bundle) -> None:
    if transformer is None:
        return
    if getattr(transformer, "peft_config", None):
        raise InputError(
            "The pipeline's transformer has LoRA weights loaded, which an engine has no place for; call "
            "pipe.unload_lora_weights(), or fuse them, save the pipeline and build a bundle from that."
        )
    for name, built in bundle.manifest.transformer_config.items():
        if name.startswith("_") or name in _NOT_ARCHITECTURE:
            continue
        own = getattr(transformer.config, name, None)
        if plain(own) != plain(built):
            raise InputError(
                f"The pipeline's transformer has {name} = {own!r}, but bundle {bundle.path} was built for {built!r}; "
                "build a bundle from this pipeline's checkpoint."
            )
