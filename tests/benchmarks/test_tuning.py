"""What tuning buys: ways are compared over the cells that have them all, memory is counted, no file is replaced."""

import torch
from tiny_models import Calls

from benchmarks import runner, targets, tuning
from benchmarks.tuning import main


def test_a_network_is_measured_and_its_records_are_reported(tmp_path, monkeypatch, capsys) -> None:
    Calls(monkeypatch)
    monkeypatch.setattr(targets, "CACHE", tmp_path)
    monkeypatch.setattr(tuning, "JUDGED", 4)
    monkeypatch.setattr(tuning, "FINE", 12)
    monkeypatch.setattr(tuning, "memory", lambda: "")
    path = tmp_path / "tuning.jsonl"
    asked = ["--measure", "--only", "fashion-eps", "--nfe", "4", "--methods", "rule,zoo", "--records", str(path)]
    assert main(asked) == 0
    rule, zoo = runner.read(path).cells
    assert rule.chosen.split()[1] in ("ddim", "dpmpp-2m", "unipc-3") and 0 < rule.rmse < 1 and zoo.coefficients
    assert main(asked) == 0 and len(runner.read(path).cells) == 2
    page = path.with_suffix(".md").read_text()
    assert "| network | N = 4 |\n" in page and "| fashion-eps | 0." in page
    assert main(["--measure", "--only", "cats"]) == 2 and "only 'cats' is not one of" in capsys.readouterr().err


class Block(torch.nn.Module):
    """Attention over itself, and a layer with an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 16)

    def forward(self, x: torch.Tensor, return_dict: bool) -> torch.Tensor:
        x = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        return torch.relu(self.layer(x))


def test_memory_is_the_count_by_hand() -> None:
    parameters, activations = tuning.gradient_bytes(tuning.Sized(Block, {}, {"x": (2, 5, 8)}, "here"))
    assert parameters == 2 * (8 * 16 + 16)
    assert activations == 2 * (2 * 5 * 8 + 2 * 5 * 8 + 2 * 5 * 16)  # x, what attention makes of it, what relu makes


def test_a_picture_that_is_there_is_left_alone(tmp_path, capsys) -> None:
    path = tmp_path / "mine.png"
    path.write_text("mine")
    assert main(["--picture", str(path)]) == 2
    assert "is there already" in capsys.readouterr().err and path.read_text() == "mine"
