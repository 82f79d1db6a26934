"""Load the final model of silo 0, with torch and safetensors alone, and try it on the digits."""

import torch
from net import Net
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, ToTensor

model = Net().eval()
model.load_state_dict(load_file("final/silo-0.safetensors"))
data = ImageFolder("digits", Compose([Grayscale(), ToTensor()]))
images, labels = (torch.stack([image for image, _ in data]), torch.tensor(data.targets))
print(f"{(model(images).argmax(1) == labels).float().mean():.3f} of {len(data)} digits right")
