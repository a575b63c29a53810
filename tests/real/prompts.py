"""Twenty prompts of different kinds, each with its own way of going wrong."""

from __future__ import annotations

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

PROMPTS = {
    "one word": "Water",
    "one letter": "a",
    "a fact": "The capital of France is",
    "a story": "Once upon a time, in a small house at the edge of the forest, there lived",
    "chat": CHAT.format("What is the capital of France?"),
    "chat with two turns": CHAT.format("Name a colour.") + "Blue.<|im_end|>\n" + CHAT.format("Another one, please."),
    "chat with a system message": "<|im_start|>system\nYou answer in one short sentence.<|im_end|>\n"
    + CHAT.format("Why is the sky blue?"),
    "python": "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n",
    "c": "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {\n",
    "sql": "SELECT name, COUNT(*) FROM orders WHERE year = 2023 GROUP BY",
    "json": '{"id": 7, "tags": ["red", "green"], "owner": {"name": "Ada", "age": 36}, "items": [',
    "numbers": "1, 2, 3, 5, 8, 13, 21, 34,",
    "arithmetic": "12 + 30 = 42\n17 + 5 = 22\n40 + 19 =",
    "german": "Der Hund läuft durch den Garten, und die Katze",
    "french": "Le petit prince regarda les étoiles et dit :",
    "chinese": "今天天气很好，我们一起去",
    "emoji": "I love pizza 🍕 and cats 🐈. My favourite emoji is",
    "blanks": "  \n\n\t indented   text\n\n",
    "repetition": "no no no no no no no no no no no no",
    "long": "",
}
"""What each prompt is → its text."""

_TOWNS = ("Aldham", "Borwick", "Corley", "Denton", "Elmore", "Farley", "Garston", "Hadlow", "Instow", "Kelby")
_GOODS = ("wool", "apples", "iron nails", "candles", "barley", "clay pots", "honey", "rope", "salt fish", "paper")

PROMPTS["long"] = "The ledger of the carrier, copied by his daughter.\n\n" + "\n".join(
    f"On day {day} he left {_TOWNS[day % 10]} for {_TOWNS[day * 7 % 10]} with {3 + day * 5 % 17} crates of"
    f" {_GOODS[day * 3 % 10]}, and was paid {day * 11 % 29 + 1} shillings."
    for day in range(1, 25)
)
