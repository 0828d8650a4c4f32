"""A narrow job such as a fine-tuned model does in production: a customer's mail to one JSON object of a fixed schema.

    python benchmarks/studies/service_mail.py --count 1200 --seed 1 --output mails.jsonl

Each record is drawn from a seed: who writes, about which order, what is wrong and what is wanted, told in one of
several ways, with details in between that nobody asks for. The answer holds the facts that were drawn, so it is right
by construction. Two seeds share the wording but, with 10^9 combinations of facts, practically no mail.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

FIRST = (
    "Amara", "Anna", "Arjun", "Beatriz", "Bruno", "Camille", "Carlos", "Chloe", "Daniel", "Darya", "Elena",
    "Emeka", "Erik", "Farah", "Fatima", "Felix", "Georgia", "Hana", "Haruto", "Helen", "Igor", "Ines", "Ivan",
    "Jack", "Jasmine", "Joao", "Julia", "Karim", "Katrin", "Kwame", "Lars", "Laura", "Leila", "Liam", "Lucia",
    "Magnus", "Maria", "Mei", "Miguel", "Mina", "Nadia", "Noah", "Nora", "Olga", "Oliver", "Omar", "Paula",
    "Pedro", "Petra", "Priya", "Rafael", "Rania", "Rosa", "Samuel", "Sara", "Sven", "Tariq", "Tomas", "Uma",
    "Vera", "Victor", "Wei", "Yara", "Yuki", "Zoe",
)  # fmt: skip
LAST = (
    "Abbasi", "Adeyemi", "Almeida", "Andersson", "Bakker", "Bauer", "Bianchi", "Castillo", "Chen", "Costa",
    "Dubois", "Eriksen", "Farouk", "Fischer", "Garcia", "Haddad", "Hansen", "Hoffmann", "Ibrahim", "Ivanova",
    "Jansen", "Johansson", "Kaya", "Kim", "Kowalski", "Kumar", "Laurent", "Lindgren", "Lopez", "Martin",
    "Mensah", "Meyer", "Moreau", "Nakamura", "Novak", "Okafor", "Olsen", "Park", "Patel", "Pereira", "Petrov",
    "Quinn", "Ramirez", "Rossi", "Sato", "Schmidt", "Sharma", "Silva", "Singh", "Sorensen", "Suzuki", "Tanaka",
    "Torres", "Ueda", "Vargas", "Virtanen", "Wagner", "Walsh", "Weber", "Wright", "Yamada", "Yilmaz", "Young",
    "Zhang",
)  # fmt: skip
DOMAINS = ("mail.example", "post.example", "inbox.example", "webmail.example", "letters.example")
PRODUCTS = (
    "standing desk", "desk lamp", "office chair", "coffee grinder", "espresso machine", "electric kettle",
    "toaster oven", "rice cooker", "hand mixer", "air purifier", "floor fan", "space heater", "robot vacuum",
    "garden hose", "hedge trimmer", "cordless drill", "tool box", "bike helmet", "bike light", "camping tent",
    "sleeping bag", "hiking boots", "rain jacket", "travel backpack", "phone case", "wireless mouse",
    "mechanical keyboard", "webcam", "monitor arm", "bluetooth speaker", "noise cancelling headphones",
    "baby monitor", "car seat", "picture frame", "wall clock", "wool blanket", "linen curtains", "bath mat",
    "cutting board", "knife set",
)  # fmt: skip
ISSUES = {
    "damaged": ("arrived with a crack along one side", "came out of the box broken", "was dented when I unpacked it"),
    "not_delivered": ("never arrived", "is still not here", "was marked as delivered but nobody has seen it"),
    "wrong_item": (
        "is not the model I chose",
        "came in the wrong colour and size",
        "is a different article altogether",
    ),
    "defective": ("stopped working after two days", "does not switch on", "makes a loud noise and then shuts down"),
    "missing_parts": ("came without the screws", "was packed without its power cable", "lacks the manual and a cover"),
    "overcharged": (
        "was charged twice on my card",
        "cost more than the price shown",
        "was billed without the discount",
    ),
}
ACTIONS = {
    "refund": ("I want my money back", "Please refund the full amount", "A refund would be the right thing now"),
    "replacement": ("Please send a new one", "I would like it replaced", "Could you ship a replacement"),
    "repair": ("Can it be repaired", "I would like to have it fixed", "Please tell me where to send it for repair"),
    "information": (
        "Please tell me what happens next",
        "I just need to know where things stand",
        "Let me know what to do",
    ),
}
CITIES = (
    "Lisbon", "Oslo", "Leeds", "Turin", "Ghent", "Krakow", "Malmo", "Porto", "Graz", "Lyon", "Cork", "Bergen",
    "Bilbao", "Aarhus", "Tampere", "Bremen", "Basel", "Utrecht",
)  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
COLOUR = (
    "We moved to {city} last month, so the address on the account is the new one.",
    "I have bought from you for years and this is the first time I have to complain.",
    "The courier was friendly, by the way.",
    "My neighbour in {city} ordered the same thing and had no trouble.",
    "I already tried the chat on your website but it only sent me in circles.",
    "It was meant as a birthday present for my brother.",
    "I kept the box and all of the packaging.",
    "Sorry for the long message, I am writing this on my phone.",
)
URGENT = (
    "This is urgent, I need it by {date}.",
    "I must have an answer before {date}.",
    "Please sort this out by {date}.",
)
SCHEMA = "customer, email, order_id, product, quantity, issue, action, deadline, urgent"
INSTRUCTION = f"Extract the fields {SCHEMA} from this mail as JSON.\n\n"


def record(generator: random.Random, number: int) -> dict[str, Any]:
    """One mail and the object it stands for: `id`, `prompt`, `answer`, `category` (the issue)."""
    pick = generator.choice
    first, last, product = pick(FIRST), pick(LAST), pick(PRODUCTS)
    email = (
        f"{first}.{last}@{pick(DOMAINS)}".lower()
        if generator.random() < 0.6
        else f"{last}{generator.randint(2, 99)}@{pick(DOMAINS)}".lower()
    )
    order = f"{pick('ABCDEFGH')}{pick('KLMNPRST')}-{generator.randint(10000, 99999)}"
    quantity, issue, action = generator.choices((1, 2, 3, 4), (6, 2, 1, 1))[0], pick(list(ISSUES)), pick(list(ACTIONS))
    month, day, urgent = generator.randint(1, 12), generator.randint(1, 28), generator.random() < 0.4
    thing = f"the {product}" if quantity == 1 else f"the {product} ({quantity} of them)"
    opening = pick((
        f"Hello, my order {order} is a problem: {thing} {pick(ISSUES[issue])}.",
        f"Hi there, about order {order}. What I ordered, {thing}, {pick(ISSUES[issue])}.",
        f"Good morning. I am writing about {thing}, order number {order}. It {pick(ISSUES[issue])}.",
        f"To whom it may concern: {thing} from order {order} {pick(ISSUES[issue])}.",
    ))  # fmt: skip
    parts = [opening, f"{pick(ACTIONS[action])}."]
    if urgent:
        parts.append(pick(URGENT).format(date=f"{day} {MONTHS[month - 1]}"))
    for line in generator.sample(COLOUR, generator.randint(0, 2)):
        parts.insert(generator.randint(1, len(parts)), line.format(city=pick(CITIES)))
    closing = pick((
        f"You can reach me at {email}.\nRegards, {first} {last}",
        f"Best, {first} {last} ({email})",
        f"My address is {email}. Thanks, {first} {last}",
    ))  # fmt: skip
    answer = {
        "customer": f"{first} {last}",
        "email": email,
        "order_id": order,
        "product": product,
        "quantity": quantity,
        "issue": issue,
        "action": action,
        "deadline": f"2026-{month:02d}-{day:02d}" if urgent else None,
        "urgent": urgent,
    }
    return {
        "id": f"mail-{number}",
        "prompt": INSTRUCTION + " ".join(parts) + "\n" + closing,
        "answer": json.dumps(answer),
        "category": issue,
    }


def records(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` records; the same for the same seed on every machine."""
    generator = random.Random(seed)
    return [record(generator, number) for number in range(count)]


def write_records(path: Path, count: int, seed: int) -> None:
    """Writes `count` records as JSON lines."""
    path.write_text("".join(json.dumps(mail) + "\n" for mail in records(count, seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    write_records(options.output, options.count, options.seed)


if __name__ == "__main__":
    main()
