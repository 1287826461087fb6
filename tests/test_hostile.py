"The short form of the campaign with hostile input, and proof that it can fail."
import time

import pytest

import hostile
from campaign import Campaign
from whisper_nb import archive, files
from whisper_nb.errors import CheckError


def test_nothing_is_let_in(tmp_path):
    campaign = Campaign('hostile')
    hostile.run(campaign, tmp_path, 'short')
    assert not campaign.lost, campaign
    tried = {subject: sum(row['tried'] for row in campaign.rows if row['subject'].startswith(subject)) for subject in ('an archive', 'a file', 'a checkpoint', 'a recording', 'a parser')}
    assert tried['an archive'] > 900 and tried['a file'] > 200 and tried['a checkpoint'] > 100 and tried['a recording'] > 50 and tried['a parser'] > 500, tried
    assert campaign.total('refused') > campaign.total('harmless') > 0


def test_names_that_are_not_checked_are_lost(tmp_path, monkeypatch):
    "The campaign finds it when the product looks at no name any more."
    monkeypatch.setattr(files, 'is_safe_name', lambda name: True)
    monkeypatch.setattr(archive, 'check_names', lambda *_: None)
    campaign = Campaign('hostile')
    hostile.archives(hostile.Judge(campaign), tmp_path, 'short', only=['a path that leads out'])
    assert 'changed: ' in str(campaign) and campaign.lost > 5, campaign


def fail(error): raise error


@pytest.mark.parametrize('work, right', [
    (lambda: fail(TypeError('a bug')), True), (lambda: fail(CheckError('', 'nothing is said')), True), (lambda: 1, False), (lambda: time.sleep(0.3), True),
    (lambda: len(bytearray(b'x' * 100_000_000)), True), (lambda: fail(BaseException('a panic')), True)])
def test_what_counts_as_lost(work, right):
    campaign = Campaign('hostile')
    judge = hostile.Judge(campaign)
    judge('one', 'fault', 'case', work, lambda found: right, seconds=0.2, bytes=50_000_000)
    assert campaign.lost == 1, campaign
    judge('one', 'fault', 'case', lambda: fail(CheckError('it is wrong', 'mend it')), lambda found: False)
    judge('one', 'fault', 'case', lambda: 1, lambda found: found == 1)
    judge('one', 'fault', 'case', lambda: 1, lambda found: True, lambda: 'something was left')
    assert [campaign.total(each) for each in ('refused', 'harmless', 'lost')] == [1, 1, 2]
