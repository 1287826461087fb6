"Campaigns of faults: each tries many, counts what came of them, and loses nothing. `make test-faults` runs them whole; the tests beside run a little of each."
import argparse
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

CAMPAIGNS = dict(crashes='kills', corruption='changed bytes', line_faults='a bad Hub or store', hostile='hostile input')  # module → what it does to us
OUTCOMES = ('recovered', 'refused', 'harmless', 'lost')


@dataclass
class Campaign:
    "What was tried, and what came of it."
    name: str
    counts: dict = field(default_factory=dict)  # (subject, fault) → outcome → how many
    shown: dict = field(default_factory=dict)  # (subject, fault) → what a user was told, once
    losses: dict = field(default_factory=dict)  # (subject, fault) → how to see each loss again

    def count(self, subject, fault, outcome, detail=''):
        assert outcome in OUTCOMES, outcome
        found = self.counts.setdefault((subject, fault), dict.fromkeys(OUTCOMES, 0))
        found[outcome] += 1
        if outcome == 'lost': self.losses.setdefault((subject, fault), []).append(str(detail) or '?')
        elif detail: self.shown.setdefault((subject, fault), str(detail))

    def add(self, rows):
        "What another process counted."
        for row in rows:
            found = self.counts.setdefault((row['subject'], row['fault']), dict.fromkeys(OUTCOMES, 0))
            for outcome in OUTCOMES: found[outcome] += row[outcome]
            if row['losses']: self.losses.setdefault((row['subject'], row['fault']), []).extend(row['losses'])
            if row['shown']: self.shown.setdefault((row['subject'], row['fault']), row['shown'])

    def total(self, outcome=None): return sum(sum(found.values()) if outcome is None else found[outcome] for found in self.counts.values())

    @property
    def lost(self): return self.total('lost')

    @property
    def rows(self):
        return [dict(campaign=self.name, subject=subject, fault=fault, tried=sum(found.values()), **found, shown=self.shown.get((subject, fault), ''), losses=self.losses.get((subject, fault), [])) for (subject, fault), found in self.counts.items()]

    def __str__(self):
        lines = [f"{self.name}: {self.total()} tried, {', '.join(f'{self.total(outcome)} {outcome}' for outcome in OUTCOMES)}"]
        return '\n'.join(lines + [f'  LOST {subject}, {fault}: {each}' for (subject, fault), losses in self.losses.items() for each in losses[:20]])


def without_places(text, work):
    "What was shown, without where it was on this machine."
    return re.sub(r'127\.0\.0\.1:\d+', '127.0.0.1', text.replace(f'{work}/', ''))


def main():
    "Run campaigns; the rows are written as they come, and a loss is exit code 1."
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('campaigns', nargs='*', default=[], help=f"of {', '.join(CAMPAIGNS)}; none: all")
    parser.add_argument('--size', choices=('short', 'full'), default='full')
    parser.add_argument('--rows', type=Path, help='where the rows are written (JSON, one per line)')
    asked = parser.parse_args()
    os.environ |= dict(TQDM_DISABLE='1') if not sys.stderr.isatty() else {}
    rows, lost, begun = [], 0, time.monotonic()
    for name in asked.campaigns or CAMPAIGNS:
        start, campaign = time.monotonic(), Campaign(name)
        with tempfile.TemporaryDirectory() as work:
            os.chdir(work)
            import_module(name).run(campaign, Path(work), asked.size)
            os.chdir('/')
        seconds = time.monotonic() - start
        print(f'{campaign} ({seconds:.0f} s)', flush=True)
        rows += [row | dict(shown=without_places(row['shown'], work), seconds=round(seconds, 1)) for row in campaign.rows]
        lost += campaign.lost
    if asked.rows:
        asked.rows.parent.mkdir(parents=True, exist_ok=True)
        asked.rows.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
    print(f"{sum(row['tried'] for row in rows)} faults, {lost} lost, {(time.monotonic() - begun) / 60:.1f} minutes")
    return bool(lost)


if __name__ == '__main__': sys.exit(main())
