"""MultiConv adapter (paper, section III-B): convolutions of three sizes on the patch grid, in a bottleneck."""

import torch
from torch import Tensor, nn


class ConvBnRelu(nn.Module):
    """Conv2d with bias, BatchNorm2d, ReLU; keeps height and width. [B, C, h, w] -> [B, C', h, w]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class MulConvAdapter(nn.Module):
    """Tokens [B, p+n, D], the last n = h*w on an h x w grid -> [B, p+n, D]. Zero at the start of training.

    The p prefix tokens, the class token and registers, are not on the grid: their hidden values take the place of the
    convolutions' output.
    The names D_fc1, D_fc2 and branch1 to branch3 are fixed by the published weights.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // 2
        self.branch1 = ConvBnRelu(hidden, dim // 4, 1)
        self.branch2 = nn.Sequential(ConvBnRelu(hidden, dim // 32, 1), ConvBnRelu(dim // 32, dim // 8, 3))
        self.branch3 = nn.Sequential(ConvBnRelu(hidden, dim // 32, 1), ConvBnRelu(dim // 32, dim // 8, 5))
        self.D_fc1 = nn.Linear(dim, hidden)
        self.D_fc2 = nn.Linear(hidden, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the convolutions to 1e-5 and the output projection to zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.constant_(module.weight, 1e-5)
                nn.init.constant_(module.bias, 1e-5)
        nn.init.zeros_(self.D_fc2.weight)
        nn.init.zeros_(self.D_fc2.bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        u = torch.relu(self.D_fc1(tokens))
        n = grid[0] * grid[1]
        # Tokens are already laid out as a channels-last map. One contiguous copy here saves a copy in each convolution.
        patches = u[:, -n:].transpose(1, 2).unflatten(2, grid).contiguous(memory_format=torch.channels_last)
        patches = torch.cat([self.branch1(patches), self.branch2(patches), self.branch3(patches)], dim=1)
        convolved = torch.cat([u[:, :-n], patches.flatten(2).transpose(1, 2)], dim=1)
        return self.D_fc2(convolved + u)
