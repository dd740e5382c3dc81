"""Run by torchrun: trains as the test beside it does, and writes what came of it from the first process."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from training_models import HELD, data, loss, net, task

from compresskit.errors import UsageError
from compresskit.train.loop import fit
from compresskit.train.processes import Team
from compresskit.train.settings import Optimizing, Training
from compresskit.train.state import Keeper, key_of
from compresskit.train.validate import Validation

HOW = Training(3, 16, Optimizing(0.1, "sgd", "cosine"), accumulate=2, clip=1.0, ema=0.9, patience=2, seed=3)


def trained(folder: Path | None) -> tuple[torch.nn.Module, dict]:
    module = net()
    fitted = fit(
        module, [t[:192] for t in data()], loss, training=HOW,
        augment=lambda x, generator: x + 0.1 * torch.randn(x.shape, generator=generator),
        validation=Validation(HELD, task(), loss), keeper=folder and Keeper(folder, key_of({}, module)),
    )  # fmt: skip
    return module, asdict(fitted)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    found, told = trained(place / "state")
    team = Team()
    try:
        team.share([torch.zeros(3, 8)])
    except UsageError as error:
        told["unequal"] = error.message
    rank = team.rank
    torch.save(found.state_dict(), place / f"{rank}.pt")
    (place / f"{rank}.json").write_text(json.dumps(told))
