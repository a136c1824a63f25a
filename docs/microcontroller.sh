#!/usr/bin/env bash
# From digits to an emulated core without a multiplier; docs/microcontroller.md explains it.
set -euo pipefail
python -m recipes.mnist --data embedded --batch-size 64 --max-steps 300 \
  --output runs/digits
python -c "
import torch
from adderize.data import load_mnist
digits = load_mnist('embedded')
torch.save(digits.train.images, 'runs/train.pt')
torch.save(digits.test.images, 'runs/test.pt')"
adderize quantize runs/digits --arch lenet5_bn --data runs/train.pt --integer \
  -o runs/digits-integers
adderize export runs/digits-integers -o runs/digits-c --name digits --data runs/test.pt --check
make -C runs/digits-c -f digits.mk
