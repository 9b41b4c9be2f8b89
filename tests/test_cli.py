"""The ``fastsnn`` command: options and their spellings, what bad input gets, and what is printed."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_tools import SMALL, Command, arguments, metrics

import fastsnn
from fastsnn import cli
from fastsnn.recorded import recorded_config
from fastsnn.terminal import Output, TerminalMonitor

FEW = arguments(epochs=1)


# What bad input gets: one line that names the argument, what it got and what is allowed.

USAGE = [
    ("train --dataset cifar", "dataset is 'cifar' (did you mean cifar10?)", "auto, mnist, fashion-mnist, digits"),
    ("train --dataset digits --dataset-args binning=count", "digits has no option binning", "none"),
    ("train --dataset digits --encoder rate", "--encoder", '"latency"'),
    ("train --epochs 0", "epochs is 0", "1 or more"),
    ("train --epochs 1.5", "--epochs", "1.5 is not an integer"),
    ("train --epochs many", "--epochs", "many is not an integer"),
    ("train --batch-size -3", "batch_size is -3", "1 or more"),
    ("train -b 0", "batch_size is 0", "1 or more"),
    ("train -T 0", "T is 0", "1 or more"),
    ("train -lr fast", "--lr", '"fast"', "float"),
    ("train --lr nan", "lr is nan", "more than 0"),
    ("train --tau 1", "tau is 1.0", "more than 1"),
    ("train --v-threshold -1", "v_threshold is -1.0", "more than v_reset"),
    ("train --v-reset no", "--v-reset", '"no"', "float"),
    ("train --surrogate step", "surrogate is 'step'", "atan, sigmoid, erf"),
    ("train --alpha 0", "alpha is 0.0", "more than 0"),
    ("train --hidden 800,x", "--hidden", "800,x is not a list of integers such as 800,400"),
    ("train --hidden 0", "hidden is 0", "1 or more"),
    ("train --loss mae", "--loss", '"mae"', '"mse", "ce"'),
    ("train --dataset digits -opt rmsprob", "optimizer is 'rmsprob'", "adam, adamax, adamw", "sgd"),
    ("train --dataset digits --optimizer-args beta=0.9", "optimizer_args has 'beta=0.9'", "with adam: betas, eps"),
    ("train --dataset digits --optimizer-args lr=0.9", "optimizer_args has 'lr=0.9'", "the option --lr"),
    ("train --dataset digits --optimizer-args eps=small", "optimizer_args has 'eps=small'", "numbers, true, false"),
    ("train --dataset digits --optimizer-args betas=2,2", "optimizer adam refuses", "betas=(2.0, 2.0)", "Invalid beta"),
    ("train --optimizer-args eps", "optimizer_args is 'eps'", "name=value"),
    ("train --dataset digits -opt rprop --weight-decay 1", "weight_decay is 1.0", "for rprop has none"),
    ("train --weight-decay -1", "weight_decay is -1.0", "0 or more"),
    ("train --clip-grad-norm 0", "clip_grad_norm is 0.0", "more than 0"),
    ("train --lr-schedule linear", "--lr-schedule", '"cosine"'),
    ("train --warmup-epochs -1", "warmup_epochs is -1.0", "0 or more"),
    ("train --validation 1", "validation is 1.0", "less than 1"),
    ("train --dataset digits --train-samples 3 --validation 0.9", "validation is 0.9 of 3 samples", "some to train on"),
    ("train --readout best", "--readout", '"last"'),
    ("train --rate-lower 0.5 --rate-upper 0.1", "rate_upper is 0.1", "0.5 or more"),
    ("train --net 32c3 --hidden 5", "hidden and net are both given", "one of"),
    ("train --dataset digits --net 32x3", "net is '32x3'", "'32x3' is no layer", "32c3 (convolution)"),
    ("train --dataset digits --net 800-32c3", "32c3 behind a linear layer"),
    ("train --dataset digits --net bn-32c3", "bn in a wrong place"),
    ("train --dataset digits --net p2-32c3", "pooling p2 before any convolution"),
    ("train --dataset digits --net 4c3-p4-4c3-p4", "net has p4 of a picture of 2 x 2"),
    ("train --dataset digits --network net.py", "network is 'net.py'", "file.py:function"),
    ("train --dataset digits --network no.py:f", "there is no file no.py", "file.py:function"),
    ("train --dataset digits --network file:f", "file is no Python file"),
    ("predict run", "needs pictures or --input file.npz"),
    ("train --momentum 1", "momentum is 1.0", "less than 1"),
    ("train --seed -1", "seed is -1", "0 or more"),
    ("train --backend jax", "--backend", '"jax"', '"numba"'),
    ("train --device tpu", "device is 'tpu'", "cuda:N"),
    ("train --threads 0", "threads is 0", "1 or more"),
    ("train --dataset digits --threads 9999", "threads is 9999", "the cores of this machine"),
    ("train --amp on", "--amp", '"on"', '"fp16"'),
    ("train --dataset digits --device cpu -amp", "amp is fp16", "off on cpu"),
    ("train --dataset digits --device cpu -amp bf16", "amp is bf16", "off on cpu"),
    ("train --name a/b", "name is 'a/b'", "--out"),
    ("train --train-samples 0", "train_samples is 0", "1 or more"),
    ("train --epoch 3", "--epoch", "--epochs"),
    ("train --bias=maybe", "--bias", '"maybe"'),
    ("train --lr", "--lr", "requires an argument"),
    ("train stray", "stray"),
    ("train --config a --resume b", "--config", "--resume", "exclude each other"),
    ("train --dataset digits --backend torch --step fused", "step fused", "backend is torch", "--step auto"),
    ("eval", "RUN", "requires an argument"),
    ("eval run --backend jax", "--backend", '"jax"', '"torch"'),
    ("evaluate run", '"evaluate"', 'Did you mean "eval"?'),
    ("--fast", '"--fast"'),
]
FAILURES = [
    ("train --config no.yaml", "no.yaml can't be read"),
    ("train --resume no", "no is not a run folder"),
    ("eval no", "no is not a run folder"),
    ("train --dataset digits --out file/run", "can't make the run folder file/run", "--out"),
    ("train --dataset digits --out file", "can't make the run folder file", "--out"),
    ("train --dataset digits --out full", "full is not empty", "--resume full", "--overwrite"),
    ("train --dataset mnist --data-dir none", "none", "--dataset digits"),
    ("train --dataset digits --device cuda:99", "cuda:99", "doctor"),
    ("predict no --input file", "file can't be read", "allowed: a .npz file with an array x"),
]


@pytest.mark.parametrize(
    ("code", "line", "said"),
    [(2, *(case[0], case[1:])) for case in USAGE] + [(1, *(case[0], case[1:])) for case in FAILURES],
)
def test_bad_input_gets_one_line(
    code: int, line: str, said: tuple[str, ...], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastsnn.sources.mnist.socket.getaddrinfo", _no_network)
    Path("file").write_text("")
    Path("full").mkdir()
    Path("full/notes").write_text("")
    found, stdout, stderr = command(*line.split())
    assert found == code, stderr
    # Kernels are compiled by whichever of these comes first on a machine.
    assert set(stdout.splitlines()) <= {COMPILING, "downloading MNIST to none"}
    assert stderr.startswith("fastsnn: ")
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr
    for part in said:
        assert part in stderr
    assert not list(Path.cwd().rglob("config.yaml")), "a refused run leaves nothing"
    assert not Path("runs").exists() or os.listdir("runs") == []


COMPILING = "compiling the CPU kernels: once on this machine, in less than a minute"


def _no_network(*_: object, **__: object) -> None:
    raise OSError("there is no network")


def test_debug_shows_where_an_error_came_from(command: Command) -> None:
    code, _, stderr = command("train", "--epochs", "0", "--debug")
    assert code == 2
    assert "Traceback" in stderr
    assert stderr.splitlines()[-1] == "ValueError: epochs is 0; allowed: 1 or more, up to 2147483647"


# Spellings.


def config_of(command: Command, tmp_path: Path, *options: str) -> fastsnn.Config:
    """The options that a run was started with."""
    code, _, stderr = command("train", *options, "--out", tmp_path / "run", "--overwrite")
    assert code == 0, stderr
    return recorded_config(tmp_path / "run")


def test_spikingjellys_spellings(command: Command, tmp_path: Path) -> None:
    line = "-T 3 -b 30 -lr 0.25 -tau 3.5 -opt sgd -momentum 0.5 -epochs 1 -device cpu"
    config = config_of(command, tmp_path, *FEW[:6], "--backend", "torch", *line.split(), "-data-dir", str(tmp_path))
    found = (config.T, config.batch_size, config.lr, config.tau, config.optimizer, config.momentum, config.epochs)
    assert found == (3, 30, 0.25, 3.5, "sgd", 0.5, 1)
    assert (config.device, config.data_dir) == ("cpu", tmp_path)
    code, stdout, _ = command("train", "-resume", tmp_path / "run", "-epochs=2", "-j", "4")
    assert code == 0
    assert stdout.splitlines()[0] == (
        "-j is not needed: the data set lives on the device, and there are no worker processes"
    )
    assert len(metrics(tmp_path / "run")) == 2
    code, _, _ = command("train", *FEW, "-out-dir", tmp_path / "there", "-j4")
    assert code == 0
    assert (tmp_path / "there" / "last.pt").exists()


def test_every_option_is_spelled_with_hyphens(command: Command, tmp_path: Path) -> None:
    line = "--train-samples=40 --no-decay-input --detach-reset --v-reset none --hidden 9,8 --bias --deterministic"
    config = config_of(
        command, tmp_path, *FEW[2:], "--dataset", "digits", *line.replace("--train-samples=40", "").split()
    )
    assert (config.decay_input, config.detach_reset, config.v_reset) == (False, True, None)
    assert (config.hidden, config.bias, config.deterministic) == ((9, 8), True, True)
    code, stdout, _ = command("train", "--help")
    assert code == 0
    for name in fastsnn.Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in stdout


def test_a_file_of_options_with_flags_on_top(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("dataset: digits\ntrain_samples: 40\ntest_samples: 10\nT: 3\nlr: 1e-2\nv_reset: none\nhidden: 7\n")
    config = config_of(command, tmp_path, "--config", str(path), "--lr", "0.5", "--epochs", "1", "--backend", "torch")
    assert (config.T, config.lr, config.v_reset, config.hidden) == (3, 0.5, None, (7,))
    config = config_of(command, tmp_path, "--config", str(path), "--hidden", "6,5", "--epochs=1", "--v-reset", "0")
    assert (config.hidden, config.v_reset) == ((6, 5), 0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "options.yaml has the unknown option 'epoch' (did you mean epochs?); allowed: T, "),
        ("lr: fast", "lr is 'fast'; allowed: a number"),
        ("- epochs", "options.yaml holds no options"),
        ("a: [", "options.yaml can't be read as YAML"),
    ],
)
def test_a_bad_file_of_options(text: str, said: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text)
    code, _, stderr = command("train", "--config", path, "--out", tmp_path / "run")
    assert code in (1, 2)
    assert said in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# What is printed.


def test_plain_lines_where_there_is_no_terminal(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "[red]run :smile:"
    code, stdout, stderr = command("train", *arguments(epochs=2), "--out", run)
    assert (code, stderr) == (0, "")
    what, folder, head, *epochs, best = stdout.splitlines()
    assert what == "digits, 64 -> 10 LIF neurons, T=4: backend torch, autograd step, on cpu (1 threads)"
    assert folder == f"run folder {run}: epochs 1 to 2, 70 samples each"
    assert head == "data    epoch  train loss accuracy  test loss accuracy     time samples/s"
    for number, (line, row) in enumerate(zip(epochs, metrics(run), strict=True), 1):
        data, epoch, train_loss, train_accuracy, test_loss, test_accuracy, *_ = line.split()
        assert (data, epoch) == ("digits", f"{number}/2")
        assert (train_loss, test_loss) == (f"{float(row['train_loss']):.5f}", f"{float(row['test_loss']):.5f}")
        assert (train_accuracy, test_accuracy) == (
            f"{float(row['train_accuracy']):.2%}",
            f"{float(row['test_accuracy']):.2%}",
        )
        assert len(line) <= len(head) <= 80
    assert best.startswith("digits: best test accuracy ")
    assert "chosen on the test set; --validation 0.1 holds out training samples" in best
    assert best.endswith(f"; saved in {run}")
    assert "\x1b" not in stdout


def test_eval(run: Path, command: Command) -> None:
    code, stdout, stderr = command("eval", run, "--json")
    assert (code, stderr) == (0, "")
    found, last = json.loads(stdout), metrics(run)[-1]
    assert (str(found["test_loss"]), str(found["test_accuracy"])) == (last["test_loss"], last["test_accuracy"])
    assert (found["epoch"], found["backend"], found["device"]) == (2, "torch", "cpu")
    code, stdout, _ = command("eval", run, "--backend", "numba")
    assert stdout.startswith(
        f"epoch 2: test loss {found['test_loss']:.5f}, test accuracy {found['test_accuracy']:.2%} (num"
    )


def test_a_finished_run_says_so(run: Path, command: Command) -> None:
    code, stdout, _ = command("train", "--resume", run)
    assert code == 0
    assert "all 2 epochs are done; a larger --epochs goes on" in stdout
    code, stdout, _ = command("train", "--resume", run, "--epochs", "3")
    assert "epochs 3 to 3" in stdout


def test_the_fallback_of_auto_is_loud_and_recorded(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsnn.sources.mnist.socket.getaddrinfo", _no_network)
    monkeypatch.setenv("FASTSNN_DATA", str(tmp_path / "none"))
    options = [part for part in FEW if part not in ("--dataset", "digits")]
    code, stdout, _ = command("train", *options, "--out", tmp_path / "run")
    assert code == 0
    assert "MNIST could not be had" in stdout
    assert "training on digits instead" in stdout
    assert stdout.splitlines()[-1].startswith("digits: best test accuracy")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["dataset"] == "digits"


def test_a_folder_that_nobody_named_is_called_after_the_data_that_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And in Python, where nothing is printed, the logger warns that they are not MNIST."""
    monkeypatch.setattr("fastsnn.sources.mnist.socket.getaddrinfo", _no_network)
    monkeypatch.setattr("fastsnn.notices._said", set())
    monkeypatch.chdir(tmp_path)
    history = fastsnn.train(fastsnn.Config(**SMALL | {"dataset": "auto", "epochs": 1, "data_dir": "none"}))
    assert history.dataset == "digits"
    assert history.run.parts[0] == "runs"
    assert history.run.name.startswith("digits-")
    assert ["training on digits instead" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.mnist
def test_fastsnn_data_names_the_folder(command: Command, tmp_path: Path) -> None:
    options = [part for part in FEW if part not in ("--dataset", "digits")]
    code, stdout, _ = command("train", *options, "--out", tmp_path / "run")
    assert code == 0
    assert "mnist, 784 -> 10 LIF neurons" in stdout


COMMANDS = [name for name in cli.app if not name.startswith("-")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_a_help_is_a_command(name: str, command: Command) -> None:
    code, stdout, _ = command(name, "--help")
    lines = [line.strip() for line in stdout.splitlines() if line.startswith("  fastsnn ")]
    assert (code, bool(lines)) == (0, True)
    for line in lines:
        assert line.split()[1] == name
        run = line.replace("latest", "runs/a")
        cli.app.parse_args(shlex.split(run)[1:], exit_on_error=False, print_error=False)


def test_the_options_of_train_stand_under_headings(command: Command) -> None:
    _, stdout, _ = command("train", "--help")
    assert re.findall(r"╭─ (\w+)", stdout) == ["Data", "Network", "Neuron", "Training", "Machine", "Run"]


def test_help_lists_every_row_of_the_tables(command: Command) -> None:
    from fastsnn.kernels.neurons import NEURONS, SURROGATES
    from fastsnn.sources import names

    words = command("train", "--help")[1].replace("│", " ").replace(",", " ").replace(". ", " ").split()
    assert {*SURROGATES, *NEURONS, *names()} <= set(words)


def test_help_that_is_read_by_its_first_lines_only() -> None:
    line = f"{sys.executable} -m fastsnn train --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Usage: fastsnn train [OPTIONS]\n", "")


def test_the_progress_bar_fits_into_60_columns() -> None:
    output = Output(width=60, force_terminal=True, file=io.StringIO())
    monitor = TerminalMonitor(output)
    monitor.start(Path("runs/a"), "mnist", 60_000, 20, 0)
    monitor.batches(19, 30_000, 0.02345, 0.876)
    monitor.bar.stop()
    plain = Output(width=60, file=io.StringIO())
    with plain.capture() as capture:
        plain.print(monitor.bar.get_renderable())
    (line,) = capture.get().splitlines()
    assert len(line.rstrip()) <= 60
    assert ("accuracy 87.6%" in line, "ETA" in line, "━━━━━" in line) == (True, True, True)


def test_help_and_usage_errors_do_not_wait_for_torch() -> None:
    program = (
        "import sys; from fastsnn.cli import main\n"
        "for line in ('--help', '--version', 'train --help', 'train --lr x', 'train --epoch 3', 'eval', 'nothing'):\n"
        "    sys.argv = ['fastsnn', *line.split()]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
