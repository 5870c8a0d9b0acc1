"""Recipes and the options that override them: what may be written, and what is said when it can't be."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export import recipes
from accelaes_export.errors import InputError
from accelaes_export.options import parse_buckets, parse_resolution, parse_targets


def recipe_text(**changes: Any) -> str:
    data = recipes.load("sd3").model_dump(mode="json") | changes
    return yaml.safe_dump({name: value for name, value in data.items() if value != "absent"})


class TestInstalled:
    def test_every_family_has_its_recipes_in_the_alphabets_order(self) -> None:
        assert {"sd3", "shapes", "flux-dev", "dit-xl-2"} <= set(recipes.names())
        assert list(recipes.names()) == sorted(recipes.names())

    @pytest.mark.parametrize("name", recipes.names())
    def test_every_recipe_is_valid_and_called_as_its_file(self, name: str) -> None:
        recipe = recipes.load(name)
        assert recipe.name == name
        assert all(0 < bucket < 1 for bucket in recipe.buckets)

    def test_sd3_is_the_published_medium_model(self) -> None:
        recipe = recipes.load("sd3")
        assert (recipe.text_tokens, recipe.dtype, recipe.steps) == (333, "fp16", 28)
        config = recipe.architecture()
        assert config["num_layers"] == 24
        assert config["num_attention_heads"] * config["attention_head_dim"] == config["caption_projection_dim"] == 1536

    def test_shapes_is_built_from_the_checkpoint_that_ships(self) -> None:
        recipe = recipes.load("shapes")
        folder = recipe.shipped_checkpoint
        assert folder is not None and (folder / "model_index.json").is_file()

    def test_an_unknown_model_lists_all_and_the_closest(self) -> None:
        with pytest.raises(InputError, match=r"'sd33' is unknown; there are dit-xl-2, .*\. Did you mean sd3\?"):
            recipes.load("sd33")
        with pytest.raises(InputError, match=r"there are dit-xl-2, .*shapes.*\.$"):
            recipes.load("../../etc/passwd")


class TestValidation:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"novelty": 1}, "novelty is no field of a recipe; the fields are affinity_blocks"),
            ({"family": "absent"}, "family: field required"),
            ({"batch": 0}, "batch: .*greater than or equal to 1, not 0"),
            ({"dtype": "fp8"}, "'fp32', 'fp16' or 'bf16', not 'fp8'"),
            ({"steps": 1}, "steps: .*2, not 1"),
            ({"buckets": [0.5, 0.5]}, "0.5 is given twice"),
            ({"buckets": 0.5}, "can't be read"),
            ({"resolution": 1024}, "two whole numbers"),
            ({"form": "tokens"}, "form"),
            ({"frames": 0}, "frames"),
            (
                {"text": [{"tokenizers": ["tokenizer"], "length": 0}]},
                "length: input should be greater than",
            ),
            ({"policy": {"name": "accelaes", "ratio": 1}}, "policy.ratio"),
        ],
    )
    def test_names_the_file_and_the_field(self, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said) as caught:
            recipes.parse(recipe_text(**changes), "mine.yaml")
        assert str(caught.value).startswith("mine.yaml: ")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("text", ["a: [", "3", "", "- a"])
    def test_what_is_no_mapping_is_no_recipe(self, text: str) -> None:
        with pytest.raises(InputError, match=r"mine\.yaml"):
            recipes.parse(text, "mine.yaml")

    def test_override_replaces_what_is_given_and_validates_it(self) -> None:
        recipe = recipes.load("sd3").override(resolution="512x768", buckets="0.5,1.0", batch=None, affinity_every=1)
        assert (recipe.resolution, recipe.buckets, recipe.batch, recipe.affinity_every) == ((512, 768), (0.5,), 1, 1)
        with pytest.raises(InputError, match="^Bucket 2 is above 1"):
            recipe.override(buckets=(2,))

    def test_a_recipe_without_architecture_says_so(self) -> None:
        recipe = recipes.parse(recipe_text(transformer_config=None), "mine.yaml")
        with pytest.raises(InputError, match="random weights"):
            recipe.architecture()


class TestOptions:
    def test_a_resolution_is_height_first(self) -> None:
        assert parse_resolution("1024x768") == (1024, 768) == parse_resolution((1024, 768))

    @pytest.mark.parametrize("text", ["1024", "1024x", "x", "-1x5", "1.5x2", "1024x1024x3", "", "axb", "0x64", "1e3x1"])
    def test_a_resolution_that_is_none_shows_how_to_write_one(self, text: str) -> None:
        with pytest.raises(InputError, match="HEIGHTxWIDTH"):
            parse_resolution(text)

    def test_buckets_are_sorted_and_dense_is_left_out(self) -> None:
        assert parse_buckets("0.75, 0.25,1.0") == (0.25, 0.75)
        assert parse_buckets("1.0") == parse_buckets([]) == ()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("0", "not above 0"),
            ("-0.5", "not above 0"),
            ("1.5", "above 1"),
            ("inf", "above 1"),
            ("nan", "not a number"),
            ("half", "not a number"),
            ("0.5,,0.25", "not a number"),
            ("", "not a number"),
            ("0.5,0.50", "twice"),
        ],
    )
    def test_a_bucket_that_cannot_be_says_why(self, text: str, said: str) -> None:
        with pytest.raises(InputError, match=said):
            parse_buckets(text)

    @given(st.lists(st.floats(min_value=1e-6, max_value=1, exclude_max=True), unique=True, max_size=8))
    def test_what_parses_parses_again_to_the_same(self, fractions: list[float]) -> None:
        once = parse_buckets(fractions)
        assert once == tuple(sorted(fractions)) == parse_buckets(",".join(map(repr, once)) or [])

    @given(st.text(max_size=20))
    def test_no_text_raises_anything_but_input_errors(self, text: str) -> None:
        for parse in (parse_buckets, parse_resolution, parse_targets):
            try:
                parse(text)
            except InputError as error:
                assert "e.g." in str(error) or "bucket" in str(error).lower() or "target" in str(error).lower()

    def test_targets_are_compute_capabilities(self) -> None:
        assert parse_targets("sm86, SM120") == ("sm86", "sm120")
        assert parse_targets("cpu") == ("cpu",)

    @pytest.mark.parametrize("text", ["86", "sm86,", "sm86,sm86", "sm8.6", "sm 86"])
    def test_a_target_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(InputError, match="Target"):
            parse_targets(text)
