"""Support tickets of an invented shop: queues, questions with their answers, and case files.

    python scripts/helpdesk_data.py data/helpdesk --seed 0 --num-train 4000

Writes JSONL, the same bytes for the same arguments:

    classify/{train,test}.jsonl    {"id", "text", "queue"}
    answer/{train,test}.jsonl      {"id", "question", "context", "answers"}
    documents/{train,test}.jsonl   {"text"}
    reply/{train,test}.jsonl       {"id", "prompt", "completion"}
    prefer/{train,test}.jsonl      {"id", "prompt", "chosen", "rejected"}

No ticket is in two files. A ticket names two things of each kind (two dates, two numbers, two
sums), so that a question is answered by the words around a value, not by its form; some
questions ask for a thing that the ticket does not name. A courteous reply names the customer and
says what is done for a ticket of its queue; `prefer` sets it against a curt one.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNANSWERABLE = 0.125

FIRST_NAMES = (
    "Ada Amir Ana Björn Chiara Chloé Dário Elif Emeka Farid Grace Hana Ines Jürgen Kemal Lê Łucja "
    "Mei Nils Noor Olga Priya Quentin Rosa Sørine Tomás Uma Viktor Wei Yusuf Zoë 美咲"
).split()
LAST_NAMES = (
    "Abara Bauer Černý D'Souza Eriksen Fontaine García Haddad Ito Jensen Kovács Lindqvist Müller "
    "Nakamura Okafor Păun Quispe Rossi Szabó Tran Ünal Vogel Watanabe Yıldız Zając 佐藤"
).split()
CITIES = (
    "Århus Bergen Córdoba Dublin Évora Fès Gdańsk Halle Izmir Jaén Köln Lyon Łódź Malmö Nantes "
    "Oulu Porto Québec Riga Sète Turin Uppsala Vigo Zürich 京都"
).split()
STREETS = (
    "Mill Lane|Harbour Street|Rue du Four|Birkenweg|Calle Mayor|Station Road|Via Roma|Kirkegata"
).split("|")
PRODUCTS = (
    "desk lamp|coffee grinder|rain jacket|bicycle pump|steel kettle|wool blanket|camping stove|"
    "travel backpack|wall clock|bread maker|garden hose|radio alarm|hiking boots|film camera|"
    "electric kettle|office chair|reading light|water filter|picnic basket|pocket knife"
).split("|")
COLOURS = "black white navy olive cream scarlet grey amber teal copper violet sand".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
CARRIERS = "BlueCart|Northpost|Velo Express|Parcelkit|Rapido|Fjordlink".split("|")


def person(rng: random.Random) -> str:
    """Return a full name."""
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def date(rng: random.Random) -> str:
    """Return a day and a month."""
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


def code(rng: random.Random) -> str:
    """Return two letters and five digits; every kind of number looks alike."""
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTUVWX") for _ in range(2))
    return f"{letters}-{rng.randint(10_000, 99_999)}"


def money(rng: random.Random) -> str:
    """Return a sum in euros."""
    return f"€{rng.randint(4, 380)}.{rng.choice(('00', '50', '90', '95', '99'))}"


def place(rng: random.Random) -> str:
    """Return a street with its number and its city."""
    return f"{rng.randint(1, 140)} {rng.choice(STREETS)}, {rng.choice(CITIES)}"


VALUES = {
    "date": date,
    "code": code,
    "money": money,
    "place": place,
    "person": person,
    "product": lambda rng: f"{rng.choice(COLOURS)} {rng.choice(PRODUCTS)}",
    "carrier": lambda rng: rng.choice(CARRIERS),
}


@dataclass(frozen=True)
class Slot:
    """One thing that a ticket can name: how it is said, and how it is asked for."""

    kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


SLOTS = {
    "ordered on": Slot(
        "date",
        (
            "I placed the order on {}.",
            "It was ordered on {}.",
            "My order dates from {}.",
        ),
        (
            "When was the order placed?",
            "On which day was it ordered?",
        ),
    ),
    "delivered on": Slot(
        "date",
        (
            "It was delivered on {}.",
            "The delivery came on {}.",
            "Your courier delivered it on {}.",
        ),
        (
            "When was it delivered?",
            "On which day did the delivery come?",
        ),
    ),
    "needed by": Slot(
        "date",
        (
            "I need an answer by {}.",
            "My deadline is {}.",
            "Please answer by {}.",
        ),
        (
            "By when is an answer needed?",
            "What is the deadline?",
        ),
    ),
    "order number": Slot(
        "code",
        (
            "My order number is {}.",
            "It concerns order {}.",
            "The number of the order is {}.",
        ),
        (
            "What is the order number?",
            "Which order does it concern?",
        ),
    ),
    "invoice number": Slot(
        "code",
        (
            "The invoice number is {}.",
            "I hold invoice {}.",
            "Your invoice says {}.",
        ),
        (
            "What is the invoice number?",
            "Which invoice is it about?",
        ),
    ),
    "serial number": Slot(
        "code",
        (
            "The serial number is {}.",
            "Its serial plate says {}.",
            "The plate shows serial {}.",
        ),
        (
            "What is the serial number?",
            "What does the serial plate say?",
        ),
    ),
    "paid": Slot(
        "money",
        (
            "I paid {}.",
            "The sum that I paid was {}.",
            "In the end I paid {}.",
        ),
        (
            "How much was paid?",
            "What sum did the customer pay?",
        ),
    ),
    "advertised": Slot(
        "money",
        (
            "It was advertised for {}.",
            "The advertised price was {}.",
            "Your site advertised {}.",
        ),
        (
            "What was the advertised price?",
            "For how much was it advertised?",
        ),
    ),
    "shipping": Slot(
        "money",
        (
            "Shipping cost {}.",
            "The shipping fee was {}.",
            "For shipping you added {}.",
        ),
        (
            "What did shipping cost?",
            "How high was the shipping fee?",
        ),
    ),
    "ships to": Slot(
        "place",
        (
            "It should go to {}.",
            "My delivery address is {}.",
            "Please deliver it to {}.",
        ),
        (
            "Where should it go?",
            "What is the delivery address?",
        ),
    ),
    "bills to": Slot(
        "place",
        (
            "Please send bills to {}.",
            "My billing address is {}.",
            "The bill belongs to {}.",
        ),
        (
            "Where should bills be sent?",
            "What is the billing address?",
        ),
    ),
    "agent": Slot(
        "person",
        (
            "On the phone I spoke to {}.",
            "Your colleague on the phone was {}.",
            "The phone was answered by {}.",
        ),
        (
            "Who was on the phone?",
            "Which colleague answered the phone?",
        ),
    ),
    "neighbour": Slot(
        "person",
        (
            "My neighbour is {}.",
            "The box is with my neighbour {}.",
            "Next door lives my neighbour {}.",
        ),
        (
            "Who is the neighbour?",
            "Which neighbour has the box?",
        ),
    ),
    "bought": Slot(
        "product",
        (
            "I bought a {}.",
            "What I bought is a {}.",
            "Last week I bought a {}.",
        ),
        (
            "What was bought?",
            "Which article did the customer buy?",
        ),
    ),
    "compared": Slot(
        "product",
        (
            "My sister owns a {}.",
            "My sister has a {}.",
            "For my sister I once chose a {}.",
        ),
        (
            "What does the sister own?",
            "Which article has the sister?",
        ),
    ),
    "carrier": Slot(
        "carrier",
        (
            "The carrier was {}.",
            "As carrier you chose {}.",
            "This time the carrier was {}.",
        ),
        (
            "Who was the carrier?",
            "Which carrier was chosen this time?",
        ),
    ),
    "past carrier": Slot(
        "carrier",
        (
            "Last year it came with {}.",
            "Last year you worked with {}.",
            "Last year I had {}.",
        ),
        (
            "With whom did it come last year?",
            "Who was used last year?",
        ),
    ),
}
KINDS = {
    kind: [name for name, slot in SLOTS.items() if slot.kind == kind]
    for kind in dict.fromkeys(slot.kind for slot in SLOTS.values())
}

QUEUES = {
    "billing": (
        "I was charged twice and want one payment back.",
        "The sum on the bill does not match what we agreed.",
        "Please correct the tax on my bill.",
        "My discount is missing from the final sum.",
    ),
    "delivery": (
        "The parcel has not moved for a week, where is it?",
        "Please leave the box at the door next time you bring it.",
        "Can the courier come on another day?",
        "The tracking page says delivered, yet nothing is here.",
    ),
    "returns": (
        "I would like to send it back, it does not suit me.",
        "Please send me a return label.",
        "How do I give it back and get my refund?",
        "I changed my mind and no longer want to keep it.",
    ),
    "repair": (
        "It stopped working after two uses, can it be mended?",
        "The switch is broken and needs a new part.",
        "It makes a grinding noise and then turns off.",
        "Could your workshop fix the cracked hinge?",
    ),
    "account": (
        "I cannot log in, the password mail never comes.",
        "Please change the mail address of my profile.",
        "Delete my user profile and all of its data.",
        "Two-step sign-in locks me out of my profile.",
    ),
    "product": (
        "Does it come in another size?",
        "Is it safe to put it in the dishwasher?",
        "How long is its cable, and what does it weigh?",
        "Will that model be in stock again soon?",
    ),
    "warranty": (
        "Is this still covered by the guarantee?",
        "I want to claim under the two-year guarantee.",
        "How do I register it for the longer cover?",
        "Your guarantee card asks for a stamp that I lack.",
    ),
    "complaint": (
        "Nobody answers me, this is the third time I write.",
        "I am disappointed by how rudely I was treated.",
        "I expect an apology from your manager.",
        "Your service has let me down and I will tell others.",
    ),
}
ASIDES = (
    "The payment itself went through fine.",
    "The courier was friendly, no complaint there.",
    "I do not want to return anything.",
    "Nothing is broken, to be clear.",
    "Logging in works, by the way.",
    "I have read the product page already.",
    "The guarantee is not my concern.",
    "I am otherwise a happy customer.",
)
REPLIES = {  # what the shop does about a ticket, and what a colleague in a hurry would write
    "billing": (
        "we have checked your bill and will send a corrected one today.",
        "Bills are final. Read it again.",
    ),
    "delivery": (
        "we have asked the courier and your parcel will reach you by tomorrow evening.",
        "It comes when it comes. Wait.",
    ),
    "returns": (
        "you will find a return label in this mail and your refund follows within a week.",
        "Send it back if you must. You pay.",
    ),
    "repair": (
        "our workshop will gladly mend it and a prepaid box is on its way to you.",
        "Then do not break it.",
    ),
    "account": (
        "your profile has been reset and a new password mail will arrive in a minute.",
        "Try again. It works for us.",
    ),
    "product": (
        "we have asked our buyers and will send you all the details this afternoon.",
        "It says so on the page.",
    ),
    "warranty": (
        "your guarantee is still valid and we have registered your claim for you.",
        "No stamp, no claim.",
    ),
    "complaint": (
        "we are truly sorry for how you were treated and our manager will call you today.",
        "Noted.",
    ),
}
GREETINGS = ("Hello,", "Dear team,", "Good morning,", "Hi there,", "To whom it may concern,")
CLOSINGS = ("Thanks,", "Kind regards,", "Best wishes,", "Many thanks,", "Yours,")


@dataclass(frozen=True)
class Ticket:
    """A ticket with its queue and, for each slot it names, the value and its position."""

    text: str
    queue: str
    customer: str
    values: dict[str, tuple[str, int]]


def make_ticket(rng: random.Random) -> Ticket:
    """Write one ticket."""
    queue = rng.choice(list(QUEUES))
    aside = rng.choice([a for i, a in enumerate(ASIDES) if list(QUEUES)[i] != queue])
    parts = [(None, rng.choice(QUEUES[queue]), "")]
    if rng.random() < 0.5:
        parts.append((None, aside, ""))
    for kind in rng.sample(list(KINDS), 2):
        used: set[str] = set()
        for name in rng.sample(KINDS[kind], 2):
            value = VALUES[kind](rng)
            while value in used:
                value = VALUES[kind](rng)
            used.add(value)
            parts.append((name, rng.choice(SLOTS[name].statements), value))
    rng.shuffle(parts)
    text, values = rng.choice(GREETINGS), {}
    for name, sentence, value in parts:
        text += " "
        if name is not None:
            values[name] = (value, len(text) + sentence.index("{}"))
        text += sentence.replace("{}", value)
    closing, customer = rng.choice(CLOSINGS), person(rng)
    return Ticket(f"{text} {closing} {customer}", queue, customer, values)


def make_question(ticket: Ticket, rng: random.Random) -> tuple[str, str | None]:
    """Return a question and the slot that answers it, None where the ticket does not say."""
    if rng.random() < UNANSWERABLE:
        kinds = {SLOTS[name].kind for name in ticket.values}
        absent = [n for n, s in SLOTS.items() if s.kind in kinds and n not in ticket.values]
        absent = absent or [name for name in SLOTS if name not in ticket.values]
        return rng.choice(SLOTS[rng.choice(absent)].questions), None
    name = rng.choice(list(ticket.values))
    return rng.choice(SLOTS[name].questions), name


def make_case(ticket: Ticket, rng: random.Random) -> str:
    """Write a case: a colleague's question, the ticket with the answer marked, and the queue."""
    question, name = make_question(ticket, rng)
    text = ticket.text
    if name is not None:
        value, start = ticket.values[name]
        text = f"{text[:start]}[{value}]{text[start + len(value) :]}"
    return f"{question}\n{text}\nQueue: {ticket.queue}"


def make_reply(ticket: Ticket) -> str:
    """Write the courteous reply."""
    done, _ = REPLIES[ticket.queue]
    thanks = f"Dear {ticket.customer}, thank you for your message:"
    return f"{thanks} {done} Kind regards, your help desk"


def tickets(rng: random.Random, seen: set[str]) -> Iterator[Ticket]:
    """Yield tickets that stand nowhere else."""
    while True:
        ticket = make_ticket(rng)
        if ticket.text not in seen:
            seen.add(ticket.text)
            yield ticket


def write(
    folder: Path,
    *,
    seed: int = 0,
    num_train: int = 4000,
    num_test: int = 500,
    num_documents: int = 2000,
) -> None:
    """Write all files below `folder`; documents/test has a tenth of `num_documents`."""
    rng = random.Random(seed)
    source = tickets(rng, set())
    for split, count in (("train", num_train), ("test", num_test)):
        rows = []
        for number in range(count):
            ticket = next(source)
            rows.append({"id": f"c-{split}-{number}", "text": ticket.text, "queue": ticket.queue})
        write_rows(folder / "classify" / f"{split}.jsonl", rows)
        rows = []
        for number in range(count):
            ticket = next(source)
            question, name = make_question(ticket, rng)
            value, start = ticket.values[name] if name else (None, None)
            answers = {
                "text": [value] if name else [],
                "answer_start": [start] if name else [],
            }
            rows.append(
                {
                    "id": f"a-{split}-{number}",
                    "question": question,
                    "context": ticket.text,
                    "answers": answers,
                }
            )
        write_rows(folder / "answer" / f"{split}.jsonl", rows)
    for split, count in (("train", num_documents), ("test", max(1, num_documents // 10))):
        rows = []
        for _ in range(count):
            cases = [make_case(next(source), rng) for _ in range(rng.randint(2, 4))]
            rows.append({"text": "\n\n".join(cases)})
        write_rows(folder / "documents" / f"{split}.jsonl", rows)
    for split, count in (("train", num_train // 2), ("test", num_test // 2)):
        rows = []
        for number in range(count):
            ticket = next(source)
            row = {"id": f"r-{split}-{number}", "prompt": ticket.text}
            rows.append(row | {"completion": make_reply(ticket)})
        write_rows(folder / "reply" / f"{split}.jsonl", rows)
        rows = []
        for number in range(count):
            ticket = next(source)
            row = {"id": f"p-{split}-{number}", "prompt": ticket.text}
            _, curt = REPLIES[ticket.queue]
            rows.append(row | {"chosen": make_reply(ticket), "rejected": curt})
        write_rows(folder / "prefer" / f"{split}.jsonl", rows)


def write_rows(file: Path, rows: list[dict]) -> None:
    """Write one JSON object for each line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description="Support tickets of an invented shop, as JSONL.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-train", type=int, default=4000)
    parser.add_argument("--num-test", type=int, default=500)
    parser.add_argument("--num-documents", type=int, default=2000)
    options = parser.parse_args()
    write(
        options.folder,
        seed=options.seed,
        num_train=options.num_train,
        num_test=options.num_test,
        num_documents=options.num_documents,
    )


if __name__ == "__main__":
    main()
