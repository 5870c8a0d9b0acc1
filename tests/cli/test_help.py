"""`--help` reads like documentation: every verb says what it does and shows an example."""

from __future__ import annotations

import re

import pytest

from accelaes_export import policies
from accelaes_export.cli import VERBS
from tests.cli.conftest import Command

# The "Verbs", option by option.
OPTIONS = """
build --model --checkpoint --random-weights --backend --target --resolution --batch --dtype --buckets
build --affinity-layers --output --force
inspect --steps --policy --json
run --prompt --policy --steps --guidance --seed --skip-ratio --mask-step --warmup --interval --refresh-every
run --output --mask-out --save-json
profile --policies --steps --batches --warmup-rounds --iterations --against --save-json --trace --checkpoint
evaluate --prompts --policies --seeds --metrics --steps --guidance --output --save-json --force --checkpoint
"""


def test_the_group_lists_every_verb_with_a_sentence(command: Command) -> None:
    text = command("--help").stdout
    for verb in VERBS:
        assert re.search(rf"^  {verb} +[A-Z]\w+ ", text, re.MULTILINE), verb
    assert "Exit codes: 0 done" in text
    assert "..." not in text.split("Commands:")[1], "what a verb does is not cut off"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_on_a_line_of_its_own(command: Command, verb: str) -> None:
    result = command(verb, "--help")
    assert result.exit_code == 0
    assert re.search(rf"^ +accelaes-export {verb}\b", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("verb", "option"), [(line.split()[0], o) for line in OPTIONS.strip().splitlines() for o in line.split()[1:]]
)
def test_every_option_is_there_and_explained(command: Command, verb: str, option: str) -> None:
    text = " ".join(command(verb, "--help").stdout.split("Options:\n")[1].split())
    assert re.search(rf"{option}( \S*[A-Z|0-9.]\S*)? [A-Z]\w+ ?[\w-]*", text)


@pytest.mark.parametrize("verb", VERBS)
def test_examples_use_only_options_that_exist(command: Command, verb: str) -> None:
    text = command(verb, "--help").stdout
    offered = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text.split("Options:\n")[1]))
    for example in re.findall(rf"^ +accelaes-export {verb}.*$", text, re.MULTILINE):
        assert set(re.findall(r"(?<= )--?[a-z][\w-]*", example)) <= offered


def test_no_verb_at_all_shows_the_help_and_is_bad_input(command: Command) -> None:
    result = command()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr and not result.stdout


def test_run_lists_every_policy_with_its_options_and_their_defaults(command: Command) -> None:
    text = " ".join(command("run", "--help").stdout.split("Policies, and their options")[1].split())
    for name in policies.names():
        policy = policies.help_of(name)
        listed = ", ".join(f"{o.name}={o.default}" if o.default else o.name for o in policy.options)
        assert policy.summary.endswith(".") and f"{name} {policy.summary} {listed}" in text
