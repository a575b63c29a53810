"""Answers a file of prompts, one a line, all of them together; prints one JSON object a line.

python offline_batch.py model.tspkg prompts.txt
"""

import json
import sys
from pathlib import Path

from tessera import LLM, Parameters


def main(package: str, prompts: str) -> None:
    lines = [line for line in Path(prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
    chats = [[{"role": "user", "content": line}] for line in lines]
    with LLM(package) as llm:
        for prompt, result in zip(lines, llm.generate(chats, Parameters(max_tokens=64)), strict=True):
            print(json.dumps({"prompt": prompt, "answer": result.text, "finish_reason": result.finish_reason}))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: offline_batch.py PACKAGE PROMPTS")
    main(*sys.argv[1:])
