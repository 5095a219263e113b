"""Models and training loops that nobody wrote for this project go on after a kill, and come to their end."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.workbench import Workbench, wait_until

from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.store.checkpoints import latest_committed

pytestmark = [pytest.mark.ray, pytest.mark.long]

NUM_STEPS = 60

# Lightning's own command line with its demo, of which only the trainer's class is ours.
LIGHTNING = """
import time
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel
from periflow_ray.lightning import PeriFlowTrainer

class Slow(Callback):
    def on_train_batch_end(self, *args):
        time.sleep(0.1)

LightningCLI(DemoModel, BoringDataModule, trainer_class=PeriFlowTrainer, trainer_defaults={"callbacks": Slow()})
"""
LIGHTNING_OPTIONS = (
    "fit --trainer.max_epochs=6 --trainer.limit_train_batches=10 --trainer.limit_val_batches=1 --trainer.logger=false"
)

TRANSFORMERS = """
import os, time, torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from periflow_ray.huggingface import PeriFlowCallback, latest_checkpoint

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.1)

rows = [{"input_ids": torch.arange(8) + k % 4, "labels": torch.arange(8) + k % 4} for k in range(64)]
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=16, n_positions=8))
arguments = TrainingArguments(os.environ["CKPT_DIR"], max_steps=60, per_device_train_batch_size=2, save_steps=10,
                              save_total_limit=2, report_to=[], use_cpu=True, logging_steps=5)
trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[PeriFlowCallback(), Slow()])
trainer.train(resume_from_checkpoint=latest_checkpoint())
"""

ACCELERATE = """
import os, time, torch
from accelerate import Accelerator
import periflow_ray as pf

accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.AdamW(model.parameters())
loader = torch.utils.data.DataLoader(torch.randn(20, 4), batch_size=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
state_dir = os.path.join(os.environ["CKPT_DIR"], "state")
if pf.resumed_step():
    accelerator.load_state(state_dir)
pf.init(total_train_steps=60)
step = pf.resumed_step()
while step < 60:
    for batch in loader:
        with pf.train_step():
            loss = model(batch).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            time.sleep(0.1)
        step += 1
        pf.metric({"iteration": step, "loss": loss.item()})
        if step % 10 == 0:
            accelerator.save_state(state_dir)
            pf.upload_checkpoint()
        if step == 60:
            break
"""

GPT = """
import os, time, torch
import periflow_sdk as pf

text = torch.tensor(list(b"the quick brown fox jumps over the lazy dog " * 8))
class Gpt(torch.nn.Module):
    def __init__(self, width=32, context=16):
        super().__init__()
        self.token, self.place = torch.nn.Embedding(256, width), torch.nn.Embedding(context, width)
        self.block = torch.nn.TransformerEncoderLayer(width, 2, 4 * width, batch_first=True)
        self.head = torch.nn.Linear(width, 256)
    def forward(self, x):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.token(x) + self.place(torch.arange(x.shape[1]))
        return self.head(self.block(hidden, mask, is_causal=True))

model = Gpt()
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
path = os.path.join(os.environ["CKPT_DIR"], "ckpt.pt")
begin = 0
if os.path.exists(path):
    saved = torch.load(path)
    model.load_state_dict(saved["model"]); optimizer.load_state_dict(saved["optimizer"]); begin = saved["step"]
pf.init(total_train_steps=60)
for step in range(begin, 60):
    with pf.train_step():
        at = torch.randint(0, len(text) - 17, (8,))
        x = torch.stack([text[k : k + 16] for k in at]); y = torch.stack([text[k + 1 : k + 17] for k in at])
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        time.sleep(0.1)
    pf.metric({"iteration": step + 1, "loss": loss.item()})
    if (step + 1) % 10 == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, path)
        pf.upload_checkpoint()
"""


@pytest.mark.parametrize(
    ("script", "options", "needs"),
    [
        pytest.param(LIGHTNING, LIGHTNING_OPTIONS, ("lightning", "jsonargparse"), id="lightning"),
        pytest.param(TRANSFORMERS, "", ("transformers",), id="transformers"),
        pytest.param(ACCELERATE, "", ("accelerate",), id="accelerate"),
        pytest.param(GPT, "", (), id="gpt"),
    ],
)
def test_it_goes_on_after_a_kill(
    workbench: Workbench, tmp_path: Path, script: str, options: str, needs: tuple[str, ...]
) -> None:
    for name in needs:
        pytest.importorskip(name)
    workspace = tmp_path / "app"
    workspace.mkdir()
    (workspace / "main.py").write_text(script)
    template = tmp_path / "pf-template.yml"
    template.write_text(
        f"""\
vm: local
num_devices: 1
max_failures: 2
job_setting:
  type: custom
  docker: {{command: cd /workspace/app && python main.py {options}}}
checkpoint: {{output_checkpoint_dir: /workspace/ckpt}}
"""
    )
    job_id = workbench.start(template, workspace)
    wait_until(lambda: latest_committed(workbench.root, job_id) is not None, "a checkpoint is there", 300)
    assert workbench.kill_ranks(job_id) == 1
    outcome, job = workbench.follow(job_id)

    assert outcome.exit_code == 0, outcome
    assert (job.state.status, job.progress.step, job.progress.total_train_steps) == ("success", NUM_STEPS, NUM_STEPS)
    first, second = read_attempts(workbench.root, job_id)
    assert (first.cause, second.cause) == ("failure", None), (first, second)
    assert 10 <= second.resumed_step < NUM_STEPS
