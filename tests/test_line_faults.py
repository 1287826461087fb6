"The short campaign of bad lines, and that it can fail."
import re
from math import inf

import pytest

import line_faults
from campaign import Campaign
from line_faults import FAULTS, WAYS, Downloading, RestoringFromTheWeb, all_cases, chosen, run, run_cases


def some(way, place, fault, times):
    "One case by its words."
    found = [case for case in all_cases() if (case.way, case.place.name, case.fault.name, case.times) == (way, place, fault, times)]
    assert len(found) == 1
    return found

@pytest.fixture
def campaign(): return Campaign('line_faults')

def test_short(campaign, tmp_path):
    run(campaign, tmp_path, 'short')
    assert not campaign.lost, str(campaign)
    assert campaign.total() == len(chosen('short')) == len(FAULTS) and campaign.total('recovered') > 10 and campaign.total('refused') > 10
    assert {row['subject'].partition(': ')[0] for row in campaign.rows} == {way.name for way in WAYS}
    for row in campaign.rows:  # what a user would read
        if row['refused']: assert row['shown'] and not re.search(r'127\.0\.0\.1|Traceback', row['shown']), row

def test_everything_is_somewhere():
    "No fault and no place without a case, and each case only once."
    cases = all_cases()
    assert len(set(map(str, cases))) == len(cases)
    assert {case.fault.name for case in cases} == {fault.name for fault in FAULTS} and {case.place for case in cases} == {place for way in WAYS for place in way.places}
    full = chosen('full')
    assert len(full) > 600 and {case.fault.name for case in full} == {fault.name for fault in FAULTS} and chosen('full') == full

def test_wrong_bytes_would_be_seen(campaign, tmp_path, monkeypatch):
    "With the check of what arrives taken away."
    from whisper_nb.transfer import Incoming
    monkeypatch.setattr(Incoming, 'is_right', lambda self: True)
    run_cases(campaign, tmp_path, some(Downloading, 'the weights, at the end', 'one wrong bit', inf))
    assert campaign.lost == 1 and 'not right' in str(campaign)

def test_a_foreign_error_would_be_seen(campaign, tmp_path, monkeypatch):
    "With the words for errors taken away."
    from whisper_nb import object_store
    monkeypatch.setattr(object_store, 'problem', lambda error, *rest: error)
    run_cases(campaign, tmp_path, some(RestoringFromTheWeb, 'the archive, in the middle', '403', inf))
    assert campaign.lost == 1 and 'PermissionDeniedError' in str(campaign)

def test_a_secret_would_be_seen(campaign, tmp_path, monkeypatch):
    from whisper_nb import hub_errors
    monkeypatch.setattr(hub_errors, '_masked', lambda text, error: text)
    run_cases(campaign, tmp_path, some(Downloading, 'a small file', '403', inf))
    assert campaign.lost == 1 and 'a secret is told' in str(campaign)

def test_a_hang_would_be_seen(campaign, tmp_path, monkeypatch):
    monkeypatch.setattr(line_faults, 'LIMIT', 1)
    monkeypatch.setattr(line_faults, 'QUIET', 60)
    case = some(RestoringFromTheWeb, 'latest.json', 'no answer', 1)
    run_cases(campaign, tmp_path, case)
    assert campaign.lost == 1 and 'hung' in str(campaign)

def test_a_fault_that_does_not_come_is_no_success(campaign, tmp_path):
    [case] = some(Downloading, 'a small file', '500', 1)
    from dataclasses import replace
    run_cases(campaign, tmp_path, [replace(case, place=replace(case.place, fits=lambda exchange: False))])
    assert campaign.lost == 1 and 'never came' in str(campaign)
