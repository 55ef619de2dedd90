"""Makes data/churn.csv: customers of a made-up phone company, and whether they left it.

Deterministic: the same file every time. Who leaves follows a known law plus chance, so that a
model can learn most of it, and never all of it.
"""

import csv
import math
import random
from pathlib import Path

CUSTOMERS = 4_000
SEED = 20_250_301
PLANS = {"basic": (18.0, 0.35), "plus": (32.0, 0.0), "family": (54.0, -0.55)}
COLUMNS = (
    "customer",
    "plan",
    "months",
    "monthly_fee",
    "gigabytes",
    "support_calls",
    "late_payments",
    "contract",
    "churned",
)


def customer(number: int, chance: random.Random) -> dict[str, object]:
    plan = chance.choices(list(PLANS), weights=(5, 4, 2))[0]
    base_fee, plan_effect = PLANS[plan]
    months = 1 + int(chance.expovariate(1 / 22))
    monthly_fee = round(base_fee * chance.uniform(0.85, 1.25), 2)
    gigabytes = round(chance.lognormvariate(2.1, 0.7), 1)
    support_calls = sum(chance.random() < 0.17 for _ in range(8))
    late_payments = sum(chance.random() < 0.1 for _ in range(6))
    contract = int(chance.random() < 0.45)
    inclination = (
        -1.7
        + plan_effect
        + 0.75 * support_calls
        + 0.55 * late_payments
        - 0.035 * min(months, 60)
        + 0.045 * (monthly_fee - base_fee)
        - 1.1 * contract
        + 0.3 * (gigabytes < 4)
    )
    churned = int(chance.random() < 1 / (1 + math.exp(-1.4 * inclination)))
    values = (
        f"C{number:05d}",
        plan,
        months,
        monthly_fee,
        gigabytes,
        support_calls,
        late_payments,
        contract,
        churned,
    )
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    chance = random.Random(SEED)
    target = Path(__file__).parent / "data" / "churn.csv"
    target.parent.mkdir(exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(customer(number, chance) for number in range(1, CUSTOMERS + 1))


if __name__ == "__main__":
    main()
