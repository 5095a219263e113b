"""Train a text classifier with the Trainer of Hugging Face transformers, without the hub.

    torchrun --nproc_per_node 2 main.py --output-dir ckpt

The model is a tiny, randomly initialised BERT. Starts again exactly where the newest checkpoint in
``--output-dir`` ended.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sentiment import VOCABULARY, Reviews
from transformers import BertConfig, BertForSequenceClassification, EvalPrediction, Trainer, TrainingArguments, set_seed

from periflow_ray.huggingface import PeriFlowCallback, latest_checkpoint


def main() -> None:
    args = parse_args()
    set_seed(args.seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
            num_labels=2,
        )
    )
    trainer = Trainer(
        model=model,
        args=make_training_arguments(args),
        train_dataset=Reviews(args.num_reviews, seed=args.seed),
        eval_dataset=Reviews(args.num_reviews // 8, seed=args.seed + 1),
        compute_metrics=measure_accuracy,
        callbacks=[PeriFlowCallback()],
    )
    trainer.train(resume_from_checkpoint=latest_checkpoint(args.output_dir))
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        print(f"finished at step {trainer.state.global_step}: accuracy {metrics['eval_accuracy']:.1%}", flush=True)


def make_training_arguments(args: argparse.Namespace) -> TrainingArguments:
    has_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=args.output_dir,
        max_steps=args.total_steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        logging_steps=args.log_interval,
        eval_strategy="steps",
        eval_steps=args.save_interval,
        save_steps=args.save_interval,
        save_total_limit=2,
        # Every node keeps its own copy: its output folder is its own.
        save_on_each_node=True,
        use_cpu=not has_gpu,
        ddp_backend="nccl" if has_gpu else "gloo",
        ddp_find_unused_parameters=False,
        # The model takes the mean of its own loss; the default would multiply that by the number of processes.
        average_tokens_across_devices=False,
        seed=args.seed,
        report_to="none",
        disable_tqdm=True,
    )


def measure_accuracy(prediction: EvalPrediction) -> dict[str, Any]:
    guesses = prediction.predictions.argmax(axis=1)
    return {"accuracy": float((guesses == prediction.label_ids).mean())}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True, help="folder for the checkpoints, and to resume from")
    parser.add_argument("--total-steps", type=int, default=300)
    parser.add_argument("--save-interval", type=int, default=50, help="steps; the test reviews are read as often")
    parser.add_argument("--log-interval", type=int, default=10, help="steps")
    parser.add_argument("--batch-size", type=int, default=16, help="reviews in a step, of each process")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--num-reviews", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
