"""cifar10_resnet20: network 983b990870512169, 40,813,184 MACs

    import safetensors.torch
    from model import model

    network = model()
    network.load_state_dict(safetensors.torch.load_file("weights.safetensors"))
    network.eval()

It takes images of shape (N, 3, 32, 32). Before that they are scaled to [0, 1] and normalised
channel by channel: (image - mean) / std with mean = [0.491576, 0.482202, 0.446667] and std =
[0.246857, 0.243315, 0.261405].
"""

from torch import nn


class BasicBlock(nn.Module):
    def __init__(self, conv1, bn1, relu, conv2, bn2):
        super().__init__()
        self.conv1 = conv1
        self.bn1 = bn1
        self.relu = relu
        self.conv2 = conv2
        self.bn2 = bn2

    def forward(self, x):
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = out + x
        return self.relu(out)


class BasicBlockWithDownsample(nn.Module):
    def __init__(self, conv1, bn1, relu, conv2, bn2, downsample):
        super().__init__()
        self.conv1 = conv1
        self.bn1 = bn1
        self.relu = relu
        self.conv2 = conv2
        self.bn2 = bn2
        self.downsample = downsample

    def forward(self, x):
        downsample = self.downsample(x)
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.conv2(x)
        x = self.bn2(x)
        x = x + downsample
        return self.relu(x)


class CifarResNet(nn.Module):
    def __init__(self, input_norm, conv1, bn1, relu, layer1, layer2, layer3, avgpool, fc):
        super().__init__()
        self.input_norm = input_norm
        self.conv1 = conv1
        self.bn1 = bn1
        self.relu = relu
        self.layer1 = layer1
        self.layer2 = layer2
        self.layer3 = layer3
        self.avgpool = avgpool
        self.fc = fc

    def forward(self, x):
        x = self.input_norm(x)
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.avgpool(x)
        x = x.flatten(1)
        return self.fc(x)


def basic_block(channels):
    return BasicBlock(
        conv1=nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(channels),
        relu=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(channels),
    )


def downsample(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=2, bias=False), nn.BatchNorm2d(c_out))


def basic_block_with_downsample(c_in, c_out):
    return BasicBlockWithDownsample(
        conv1=nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False),
        bn1=nn.BatchNorm2d(c_out),
        relu=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(c_out),
        downsample=downsample(c_in, c_out),
    )


def model() -> nn.Module:
    """Return the network with fresh weights."""
    return CifarResNet(
        input_norm=nn.BatchNorm2d(3),
        conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(16),
        relu=nn.ReLU(inplace=True),
        layer1=nn.Sequential(*(basic_block(16) for _ in range(3))),
        layer2=nn.Sequential(basic_block_with_downsample(16, 32), basic_block(32), basic_block(32)),
        layer3=nn.Sequential(basic_block_with_downsample(32, 64), basic_block(64), basic_block(64)),
        avgpool=nn.AdaptiveAvgPool2d(1),
        fc=nn.Linear(64, 10),
    )
