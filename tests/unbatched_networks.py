"""Networks whose values have not the images alone in their first axis: one more table of what is owed."""

import torch
from brought_networks import Brought, Plain, unit
from torch import Tensor, nn


class Queried(Plain):
    """Seven rows of weights go through a layer, and their mean is joined to the features."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.rows, self.project = nn.Parameter(torch.randn(*(shape or (7, 12)))), nn.Linear(12, 12)

    def pooled(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooled(x) + self.project(self.rows).mean(0))


class Classified(Queried):
    """The classifier reads features and rows."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooled(x)) + self.head(self.rows).mean(0) * self.project(self.rows).mean()


class Expanded(Queried):
    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows.unsqueeze(0).expand(x.shape[0], -1, -1)
        return self.head(self.pooled(x) + self.project(rows).mean(1))


class Scaled(Plain):
    """A small layer makes one factor a channel of a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.gate = nn.Parameter(torch.randn(6)), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)) * torch.sigmoid(self.gate(self.z)))


class Normed(Queried):
    """A norm reads rows before it reads features."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(self.project(self.rows)).mean(0)
        return self.head(self.norm(self.pooled(x)) + rows)


class Sloped(Queried):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.PReLU(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.slope(self.project(self.rows)).mean(0) + self.slope(self.pooled(x)))


class Mapped(Plain):
    """A convolution reads images and several maps of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.c = nn.Parameter(torch.randn(5, 3, 16, 16)), unit(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        stem, norm, act = self.a
        return self.head(self.c(self.b(act(norm(stem(self.maps).mean(0) + stem(x))))).mean((2, 3)))


class Tokens(Plain):
    """One classifier reads tokens and a mean of other features."""

    def __init__(self) -> None:
        super().__init__()
        self.d = unit(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        tokens = self.c(x).flatten(2).transpose(1, 2)
        return self.head(tokens).mean(1) + self.head(self.d(x).mean((2, 3)))


class MeanFirst(Tokens):
    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        mean = self.head(self.d(x).mean((2, 3)))
        return mean + self.head(self.c(x).flatten(2).transpose(1, 2)).mean(1)


class Gram(Plain):
    """What is made of the features has no axis of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        return self.head(self.c(x).mean((2, 3)) + x.mean((0, 2, 3)) * x.new_tensor([0.5] * 12))


class Folded(Plain):
    """Pixels stand in the axis of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.norm = nn.Linear(12, 12), nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(2).transpose(1, 2)
        keys = self.norm(self.key(x.reshape(-1, 12))).view(x.shape[0], -1, 12)
        return self.head(keys.mean(1))


class Twice(Plain):
    """Each image and its mirrored twin, side by side in the axis of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(torch.cat([x, x.flip(3)], 0))
        x = x[: x.shape[0] // 2] + x[x.shape[0] // 2 :]
        return self.head(self.c(x).mean((2, 3)))


class Pairs(Plain):
    """Right for one image, and more work for each the more there are."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3))
        return self.head(self.pair(x.unsqueeze(0) + x.unsqueeze(1)).mean(1))


UNBATCHED = {
    "rows through a layer": Brought(Queried, ("width.c.0: leaves mean",)),
    "one row through a layer": Brought(lambda: Queried(1, 12)),
    "a vector through a layer": Brought(lambda: Queried(12)),
    "rows and features through one classifier": Brought(Classified),
    "rows, once for each image": Brought(Expanded),
    "factors made of a vector": Brought(Scaled),
    "a norm of rows and features": Brought(Normed),
    "slopes for rows and features": Brought(Sloped),
    "a convolution of maps and images": Brought(Mapped, ("conv.a.0: it reads several maps at once",)),
    "means over all images": Brought(Gram),
    "pixels in the axis of the batch": Brought(Folded, ("width.c.0: ",)),
    "twins in the axis of the batch": Brought(Twice, ("conv.b.0: it reads several maps at once",)),
    "tokens and features through one classifier": Brought(Tokens, ("width.d.0: ",)),
    "features and tokens through one classifier": Brought(MeanFirst, ("width.d.0: ",)),
}
