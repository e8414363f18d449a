"""Tiny models with every kind of layer that PEFT adapts, and adapters on them as PEFT makes and runs them."""

import json

from tests.helpers.tiny_models import peft, torch

nn = torch.nn


class Convolutions(nn.Module):
    """One layer for each number of dimensions, kernels of one and of several places."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(4, 6, 3)
        self.point = nn.Conv2d(6, 5, 1)
        self.square = nn.Conv2d(5, 4, (3, 2), padding=1, bias=False)
        self.cube = nn.Conv3d(1, 3, (1, 2, 2))

    def forward(self, x):  # (batch, 4, 10)
        y = self.line(x).reshape(-1, 6, 4, 2)
        y = self.square(torch.tanh(self.point(y)))
        return self.cube(torch.tanh(y)[:, None])


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.grouped(x.reshape(-1, 4, 3, 5))))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.lin = nn.Linear(6, 4)

    def forward(self, x):
        return self.lin(self.emb((x[:, 0] * 7).long().abs() % 11))


class Experts(nn.Module):
    """As transformers 5 keeps a mixture of experts: two 3-d parameters."""

    def __init__(self, transposed=False):
        super().__init__()
        self.is_transposed = transposed
        wide, tall = ((3, 4, 10), (3, 5, 4)) if transposed else ((3, 10, 4), (3, 4, 5))
        self.gate_up_proj = nn.Parameter(torch.randn(wide))
        self.down_proj = nn.Parameter(torch.randn(tall))

    def forward(self, x):
        spell = ("bi,eio->beo", "bei,eio->beo") if self.is_transposed else ("bi,eoi->beo", "bei,eoi->beo")
        gate, up = torch.einsum(spell[0], x, self.gate_up_proj).chunk(2, -1)
        return torch.einsum(spell[1], torch.tanh(gate) * up, self.down_proj).sum(1)


class Mixture(nn.Module):
    def __init__(self, transposed=False):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"experts": Experts(transposed)}) for _ in range(2)])
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        y = x[:, :, 0]
        for layer in self.layers:
            y = y + layer["experts"](y)
        return self.lin(y)


def transposed_mixture():
    return Mixture(transposed=True)


INPUT = torch.linspace(-2, 2, 3 * 4 * 10).reshape(3, 4, 10)


def base(make, dtype=torch.float64):
    """The same random model at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval().to(dtype)


def save(folder, make, seed, config=None, of=peft.LoraConfig, **patch):
    """A random adapter as PEFT saves it; `patch` then overwrites fields of its config file."""
    model = peft.get_peft_model(base(make), of(**config)).eval()
    randomness = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if any(each in name for each in ("lora_", "hada_", "lokr_")):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=randomness).to(parameter.dtype)
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | patch))
    return folder


def load(make, folders):
    """The base with these adapters, all active."""
    model = peft.PeftModel.from_pretrained(base(make), folders[0], adapter_name="0")
    for i, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(i))
    model.base_model.set_adapter([str(i) for i in range(len(folders))])
    return model.eval()


@torch.no_grad()
def output(model):
    return model(INPUT.to(torch.float64)).numpy()
