"""Reports logged: as JSON lines, to MLflow, by a command and by the environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compresskit.cli.tracking import log
from compresskit.errors import MachineError, UsageError
from compresskit.report import Measurement, ModelEntry, Report, Verdict


@pytest.fixture
def report() -> Report:
    models = [ModelEntry(name=n, path=n, bytes=b, sha256=n * 8) for n, b in (("old", 1000), ("new", 250))]
    figures = [
        Measurement(model="new", name="accuracy", value=91.5, unit="%", low=90.0, high=92.5, n=100),
        Measurement(model="new", name="speedup", value=2.0, runtime="onnxruntime", batch=8),
        Measurement(model="old", name="accuracy", value=92.0, unit="%"),
    ]
    return Report(command="compresskit quantize m.pt", verdict=Verdict.PASS, models=models, measurements=figures)


def test_a_line_is_appended_for_each_model_compared(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    log(report, str(path))
    log(report.model_copy(update={"models": report.models[:1]}), str(path))
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert (first["model"], first["baseline"], first["verdict"]) == ("new", "old", "PASS")
    assert first["metrics"] == {
        "bytes": 250, "smaller": 4.0, "accuracy": 91.5, "accuracy_low": 90.0, "accuracy_high": 92.5,
        "speedup/onnxruntime/batch8": 2.0,
    }  # fmt: skip
    assert (second["model"], second["baseline"], second["metrics"]) == ("old", None, {"bytes": 1000, "accuracy": 92.0})


@pytest.mark.parametrize("where", ["wandb", "absent/runs.jsonl"])
def test_a_tracker_that_cannot_be(where: str, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="expected"):
        log(report, where)


def test_the_environment_logs_what_a_command_found(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from compresskit.cli.console import finish

    monkeypatch.setenv("COMPRESSKIT_LOG", str(tmp_path / "runs.jsonl"))
    assert finish(report, json=None, quiet=True) == 0
    assert json.loads((tmp_path / "runs.jsonl").read_text(encoding="utf-8"))["model"] == "new"
    monkeypatch.setenv("COMPRESSKIT_LOG", "wandb")
    assert finish(report, json=None, quiet=True) == 0, "what was measured isn't lost"
    assert "not logged to wandb" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_a_run(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    log(report, "mlflow")
    run = mlflow.MlflowClient().search_runs(["0"])[0]
    assert run.info.run_name == "new" and run.data.tags["verdict"] == "PASS"
    assert run.data.metrics["smaller"] == 4.0 and run.data.params["command"] == "compresskit quantize m.pt"
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    mlflow.set_tracking_uri((tmp_path / "refused").as_uri())
    with pytest.raises(MachineError, match="MLflow"):
        log(report, "mlflow")
