"""Run configuration: files, flags, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from snn_core.cli.config import build_config, parse_assignment
from snn_core.errors import ConfigError


def test_defaults_file_flags_and_assignments_in_that_order(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('seed = 3\n[train]\nepochs = 7\nbatch_size = 9\n[prune]\npattern = "1:4"\n')
    config = build_config(file, {"train.epochs": 8, "data.source": None}, ["train.batch_size=11", "data.by=count"])
    assert (config.seed, config.train.epochs, config.train.batch_size) == (3, 8, 11)
    assert (config.prune.pattern, config.data.by, config.data.source) == ("1:4", "count", "digits-dvs")


def test_yaml_says_the_same_as_toml(tmp_path: Path) -> None:
    toml, yaml = tmp_path / "a.toml", tmp_path / "a.yaml"
    toml.write_text("[distill]\nipc = 2\nbetas = [0.4, 0.8]\n[model.options]\nchannels = [8, 8]\n")
    yaml.write_text("distill: {ipc: 2, betas: [0.4, 0.8]}\nmodel: {options: {channels: [8, 8]}}\n")
    assert build_config(toml) == build_config(yaml)


def test_the_seed_reaches_every_part_unless_it_names_its_own() -> None:
    config = build_config(None, {"seed": 5})
    assert config.train_config().seed == config.prune_config().seed == 5
    assert build_config(None, {"seed": 5, "train.seed": 6}).train_config().seed == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nepoch = 3\n", ["train.epoch", "did you mean 'epochs'"]),
        ("[trian]\nepochs = 3\n", ["trian", "did you mean 'train'"]),
        ('[train]\nepochs = "many"\n', ["train.epochs", "many"]),
        ('[train]\nepochs = "3"\n', ["train.epochs", "valid integer"]),
        ("[train]\nepochs = true\n", ["train.epochs", "valid integer"]),
        ("[train]\nlearning_rate = inf\n", ["train.learning_rate", "finite"]),
        ("[train]\nepochs = 0\n", ["train.epochs", "greater than or equal to 1"]),
        ('[prune]\npattern = "4:2"\n', ["prune.pattern", "4:2"]),
        ("[distill]\nipc = 0\n", ["distill.ipc"]),
        ("[distill.teachers]\nnumber = 3\n", ["distill.teachers.number", "known keys"]),
        ("[data]\nfolds = 3\nfold = 3\n", ["fold 3 does not exist"]),
        ("train = 3\n", ["train"]),
        ("[train\n", ["not valid TOML"]),
    ],
)
def test_wrong_files_are_explained(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        build_config(file)
    assert "run.toml" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_other_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        build_config(tmp_path / "absent.toml")
    for name, text, word in (("a.ini", "", "unknown kind"), ("a.yaml", "- 1\n", "table"), ("b.yaml", "a: [", "YAML")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=word):
            build_config(tmp_path / name)


def test_assignments() -> None:
    assert parse_assignment("train.epochs=3") == (["train", "epochs"], 3)
    assert parse_assignment("prune.pattern=1:4") == (["prune", "pattern"], "1:4")
    assert parse_assignment("data.source=a=b") == (["data", "source"], "a=b")
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_assignment("epochs")
    with pytest.raises(ConfigError, match="not a section"):
        build_config(None, {"seed": 3}, ["seed.x=3"])
