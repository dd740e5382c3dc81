"""The network of the demo; a copy of this file is put beside its checkpoint, as a user would have it."""

from torch import Tensor, nn


class Net(nn.Module):
    """A small CNN for 8×8 grey images: float32 ``(n, 1, 8, 8)`` to ``(n, 10)``."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_block(1, width),
            *_block(width, width),
            nn.MaxPool2d(2),
            *_block(width, 2 * width),
            *_block(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten digits."""
        logits: Tensor = self.layers(x)
        return logits


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
