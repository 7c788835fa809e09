"""Files of torch.save (2.15), and what they hold. Run: python make.py"""
import json
from collections import OrderedDict

import torch

torch.manual_seed(0)
base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
model = torch.nn.Linear(2, 3)
value = OrderedDict(
    numbers=[0, 255, 65535, -1, 2**31 - 1, -(2**40), 0.1, float("-inf")], plain=(None, True, False, "磨坊"), pair=(1, 2), empty=[{}, (), []],
    f32=base, transposed=base.t(), row=base[2], column=base[:, 1], scalar=torch.tensor(6.0), none=torch.zeros(0, 3), f64=base.double() + 1e-9,
    f16=base.half(), bf16=base.bfloat16(), i64=torch.tensor([[-3, 7]]), i32=torch.tensor([5], dtype=torch.int32), u8=torch.tensor([200], dtype=torch.uint8),
    truth=torch.tensor([True, False]), parameter=torch.nn.Parameter(base[0].clone()), state_dict=model.state_dict())
torch.save(value, "values.pt")
tensors = {key: entry for key, entry in value.items() if isinstance(entry, torch.Tensor)} | dict(model.state_dict())
json.dump({key: [list(entry.shape), entry.detach().double().flatten().tolist()] for key, entry in tensors.items()}, open("values.json", "w"))
