"The short form of the corruption campaign, and proof that it would notice."
import pytest

from campaign import Campaign
from corruption import FAULTS, attack, contents, run
from whisper_nb.verify import verify


@pytest.fixture(scope='module')
def campaign(tmp_path_factory):
    "The campaign, what it attacked, and whether the models were put right again behind it."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        work, found = tmp_path_factory.mktemp('corruption'), Campaign('corruption')
        return found, run(found, work, 'short'), work


def test_nothing_is_lost(campaign):
    found, subjects, work = campaign
    assert not found.lost, found
    assert found.total() >= 600 and found.total('refused') > found.total()/2 and found.total('recovered') and found.total('harmless'), found
    assert {row['fault'] for row in found.rows} == set(FAULTS)
    assert {subject.name for subject in subjects} <= {row['subject'] for row in found.rows} and {row['subject'] for row in found.rows} >= {'command restore', 'command unpack', 'command verify'}


def test_every_bit_is_found_where_a_checksum_or_a_manifest_covers_it(campaign):
    found, subjects, _ = campaign
    strict = {subject.name for subject in subjects if subject.command and not subject.name.startswith('store')} # an archive in a store is not read when exactly its model is there already
    assert len(strict) > 20 and all(row['tried'] == row['refused'] for row in found.rows if row['subject'] in strict)


def test_everything_is_as_it_was(campaign):
    _, subjects, work = campaign
    for path in {subject.path.parent for subject in subjects if subject.path.parent.parent.name in ('models', 'bare', 'signed')}: assert verify(path).ok, path
    assert contents(work/'archives') and not [path for path in work.rglob('*.partial')]


def lost(subjects, name, count=40):
    "How many changes to this subject are lost now."
    again = Campaign('sabotage')
    attack(again, [subject for subject in subjects if subject.name == name], count, 'sabotage')
    return again.lost


def test_the_campaign_notices_a_verify_that_compares_nothing(campaign, monkeypatch):
    monkeypatch.setattr('whisper_nb.verify.differences', lambda *_, **__: {})
    assert lost(campaign[1], 'CTranslate2: model.bin, numbers') > 10


def test_the_campaign_notices_an_unpacking_that_compares_nothing(campaign, monkeypatch):
    monkeypatch.setattr('whisper_nb.unpack._compare', lambda *_: None)
    assert lost(campaign[1], 'archive tar')


def test_the_campaign_notices_a_file_that_is_not_proven(campaign, monkeypatch):
    from whisper_nb import archive, unpack
    def believe(tar, name, record, file, advance):
        for piece in tar.pieces(record.size): file.write(piece)
        tar.read(-record.size % 512)
    monkeypatch.setattr(archive, '_read_file', believe)
    monkeypatch.setattr(unpack, '_compare', lambda *_: None)
    assert lost(campaign[1], 'archive tar, no checksums') > 5 and lost(campaign[1], 'store: archive tar') > 5


def test_the_campaign_notices_a_traceback(campaign, monkeypatch):
    def stumble(*_): raise KeyError('sha256')
    monkeypatch.setattr('whisper_nb.restore.parse_publication', stumble)
    assert lost(campaign[1], 'store: latest.json', count=10) >= 10
