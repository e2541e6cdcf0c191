"""A folder of your own images, your own training loop's parts, and a smaller network on disk.

    python own_images.py photos small.safetensors --model resnet18 --epochs 30

The folder holds one sub-folder of images for each class. ``nasbench-grow grow`` does the same and more in one command.
"""

import argparse

import timm
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import nasbench_grow

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("out")
parser.add_argument("--model", default="resnet18")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--budget", type=float, default=0.5)
options = parser.parse_args()

transform = v2.Compose(
    [
        v2.RandomResizedCrop(options.size),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)
images = ImageFolder(options.folder, transform)
loader = DataLoader(images, options.batch_size, shuffle=True, drop_last=True)

model = timm.create_model(options.model, num_classes=len(images.classes))
example = torch.zeros(1, 3, options.size, options.size)
grown = nasbench_grow.grow(model, example, loader, budget=options.budget, epochs=options.epochs)
grown.save(options.out, class_names=images.classes)

network = nasbench_grow.load(options.out)
names = network.class_names
print(f"{', '.join(names)}: {grown.macs:,} of {grown.dense_macs:,} multiply-accumulates")
