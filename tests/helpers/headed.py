"""A model of words with a head, and adapters on it whose trained tensors are random."""

from tests.helpers import zoo
from tests.helpers.tiny_models import peft, torch

P = "base_model.model."
WORDS = {"r": 3, "lora_alpha": 5, "target_modules": ["hidden"]}


class Headed(torch.nn.Module):
    """Words, a hidden layer, and a head of two tensors."""

    def __init__(self):
        super().__init__()
        self.emb = torch.nn.Embedding(11, 6)
        self.hidden = torch.nn.Linear(6, 5)
        self.head = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))

    def get_input_embeddings(self):
        return self.emb

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(self.emb((x[:, 0] * 7).long().abs() % 11))))


def save(path, seed, **config):
    """An adapter whose trained tensors are random."""
    model = peft.get_peft_model(zoo.base(Headed), peft.LoraConfig(**{**WORDS, **config}))
    randomness = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=randomness).to(parameter.dtype)
            assert "base" in name
    model.save_pretrained(path, save_embedding_layers=False)
    return path
