"""fastsnn.Config: the defaults, what is refused and how, and YAML."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fastsnn
from fastsnn.config import DEFAULT_T, Config
from fastsnn.errors import RunFolderError
from fastsnn.options import read_yaml
from fastsnn.recorded import recorded_config


def test_the_defaults_are_the_reference_job() -> None:
    config = Config()
    assert (config.T or DEFAULT_T, config.batch_size, config.tau, config.surrogate, config.alpha) == (
        100,
        64,
        2.0,
        "atan",
        None,
    )
    assert (config.optimizer, config.lr, config.loss, config.hidden, config.bias) == ("adam", 1e-3, "auto", (), False)
    assert config.layer_neuron() == fastsnn.LIF()


BAD = [
    ("dataset", 3, "text"),
    ("dataset_args", ("binning",), "name=value"),
    ("encoder", "rate", "none, poisson, latency, direct"),
    ("data_dir", 3, "a path"),
    ("train_samples", 0, "1 or more"),
    ("test_samples", -1, "1 or more"),
    ("hidden", (800, 0), "1 or more"),
    ("hidden", (1.5,), "an integer"),
    ("neuron", 3, "text"),
    ("neuron", "lof", "if, lif, plif, cuba"),
    ("recurrent", "yes", "true or false"),
    ("learn_per", "batch", "layer, neuron"),
    ("bias", "yes", "true or false"),
    ("T", 0, "1 or more"),
    ("T", 2.5, "an integer"),
    ("T", True, "an integer"),
    ("tau", 1.0, "more than 1"),
    ("tau", "x", "a number"),
    ("tau", float("nan"), "a finite number"),
    ("v_threshold", 0.0, "more than v_reset"),
    ("v_reset", 1.0, "more than v_reset"),
    ("v_reset", "x", "a number or none"),
    ("decay_input", 1, "true or false"),
    ("detach_reset", None, "true or false"),
    ("surrogate", "step", "atan, sigmoid, erf"),
    ("alpha", 0.0, "more than 0"),
    ("loss", "mae", "mse, ce"),
    ("readout", "best", "auto, rate, max, last, mean, steps"),
    ("rate_lower", -0.1, "0 or more, up to 1"),
    ("rate_upper", 2.0, "up to 1"),
    ("rate_penalty", -1.0, "0 or more"),
    ("net", 3, "text"),
    ("network", 3, "text"),
    ("optimizer", 3, "text"),
    ("optimizer_args", ("betas",), "name=value"),
    ("weight_decay", -0.1, "0 or more"),
    ("clip_grad_norm", 0.0, "more than 0"),
    ("lr_schedule", "linear", "none, cosine, step"),
    ("lr_step_epochs", 0, "1 or more"),
    ("lr_step_factor", 0.0, "more than 0"),
    ("warmup_epochs", float("nan"), "0 or more"),
    ("validation", 1.0, "less than 1"),
    ("lr", 0.0, "more than 0"),
    ("lr", float("inf"), "1e37"),
    ("lr", None, "a number"),
    ("momentum", 1.0, "less than 1"),
    ("momentum", float("nan"), "less than 1"),
    ("epochs", 0, "1 or more"),
    ("batch_size", 0, "1 or more"),
    ("seed", -1, "0 or more"),
    ("seed", 2**64, "2**64 - 1"),
    ("backend", "jax", "auto, torch, cupy, triton, numba"),
    ("step", "fast", "auto, fused, autograd"),
    ("device", "tpu", "auto, cpu, cuda, cuda:N"),
    ("device", "cuda:-1", "cuda:N"),
    ("threads", 0, "1 or more"),
    ("amp", "on", "off, fp16, bf16"),
    ("deterministic", "no", "true or false"),
    ("recompute", "yes", "auto, on, off"),
    ("name", "a/b", "a folder name"),
    ("name", "..", "a folder name"),
    ("out", 7, "a path"),
    ("overwrite", "no", "true or false"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD, ids=[f"{name}={value}" for name, value, _ in BAD])
def test_a_refusal_names_option_value_and_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises((ValueError, TypeError)) as refusal:
        Config(**{name: value})
    text = str(refusal.value)
    assert name in text if name != "v_reset" or value != 1.0 else "v_threshold" in text
    assert "allowed" in text
    assert allowed in text
    assert "\n" not in text
    shown = value[-1] if isinstance(value, tuple) else value
    assert str(shown) in text


def test_every_option_has_a_bad_value_above() -> None:
    assert {name for name, _, _ in BAD} == set(Config.__dataclass_fields__)


def test_close_types_are_taken() -> None:
    config = Config(T=np.int64(7), lr=np.float32(0.5), tau=3, hidden=[20, 10], out="runs/x")  # type: ignore[arg-type]
    assert (config.T, config.lr, config.tau, config.hidden, config.out) == (7, 0.5, 3.0, (20, 10), Path("runs/x"))
    assert [type(value) for value in (config.T, config.lr, config.tau)] == [int, float, float]
    assert Config(hidden=800).hidden == (800,)  # type: ignore[arg-type]


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = Config(
        dataset="digits", data_dir=tmp_path, train_samples=10, test_samples=5, hidden=(30, 20), bias=True, T=7, tau=3.5,
        v_threshold=0.9, v_reset=None, decay_input=False, detach_reset=True, surrogate="erf", alpha=1e-5, loss="ce",
        optimizer="sgd", optimizer_args=("nesterov=true",), lr=1e-7, momentum=0.1, weight_decay=1e-9, validation=0.1,
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert Config.from_dict(read_yaml(path), str(path)) == config
    assert recorded_config(tmp_path) == config


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("lr: 1e-3", "lr", 1e-3),
        ("amp: off", "amp", "off"),
        ("v_reset: none", "v_reset", None),
        ("v_reset: ~", "v_reset", None),
        ("hidden: 800", "hidden", (800,)),
        ("hidden: [800, 400]", "hidden", (800, 400)),
        ("decay_input: no", "decay_input", False),
        ("data_dir: data", "data_dir", Path("data")),
    ],
)
def test_yaml_is_read_as_it_is_meant(tmp_path: Path, text: str, name: str, value: Any) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text)
    assert getattr(Config.from_dict(read_yaml(path), str(path)), name) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "3",
        "a: [",
        "\tx",
        "a: &a [*a]",
        "x: !!python/object/apply:os.system [id]",
        "d: 2001-99-99",
        "[" * 9999,
    ],
)
def test_a_file_that_holds_no_options_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text)
    with pytest.raises((RunFolderError, ValueError), match=r"options\.yaml") as refusal:
        Config.from_dict(read_yaml(path), str(path))
    assert "\n" not in str(refusal.value)
    path.rename(tmp_path / "config.yaml")
    with pytest.raises(RunFolderError, match=r"config\.yaml"):
        recorded_config(tmp_path)


def test_an_unknown_option_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"f\.yaml has the unknown option 'epoch' \(did you mean epochs\?\); allowed: T, .*, epochs, "
    ):
        Config.from_dict({"epoch": 3}, "f.yaml")
