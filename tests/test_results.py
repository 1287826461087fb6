"""What follows from rows, whatever the rows are: the notebooks show it on one real run, here it is asked of many made-up ones."""
import json
import math
import random
import re
import warnings

import pytest
from hypothesis import HealthCheck, given, settings, strategies as some

from whisper_nb.errors import CheckError, RequestError
from whisper_nb.recommend import Limits, left_out, recommend
from whisper_nb.regressions import chance, compare
from whisper_nb.results import COLUMNS, accuracy_table, cases_frame, failures_table, pareto_front, parts_table, read_results, recordings_table, speed_table

TEXTS = 'turn the lights on', 'open the gate please', 'call alice', 'set a timer for ten minutes'
slow = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
quick = settings(max_examples=100, deadline=None)


def heard_row(case, number, name, seconds, text, vad=False):
    return dict(step='heard', case=case, round=number, recording=name, vad=vad, seconds=seconds, text=text, language='en',
        parts=dict(vad=0.0, features=0.1*seconds, encode=0.5*seconds, decode=0.2*seconds))


def trial_row(case, number, **more):
    model, backend, device, asked, beam, batch = case.split(', ')
    return dict(step='trial', case=case, round=number, model=model, checkpoint=model.split('-')[0], backend=backend, device=device, asked=asked, compute_type=asked,
        beam_size=int(beam.split()[1]), batch_size=int(batch.split()[1]), threads=2, status='done', problem=None, advice=None, import_seconds=1.0, load_seconds=0.5,
        warmup_seconds=0.3, wall_seconds=1.0, peak_memory=500_000_000, peak_gpu_memory=None, energy_joules=None) | more


def first_rows(models=('demo', 'demo-ct2'), known=True):
    listed = [dict(model=name, directory=f'models/{name}', checkpoint='demo', format='transformers', quantization='float16', bytes=1, manifest_sha256=64*'0', random=False) for name in models]
    machine = dict(step='machine', name='x', measured='2026-11-21T12:00:00Z', machine=dict(processor='one', cores='2', torch='2.13.0'), gpus=[], no_gpu='no NVIDIA driver', threads=2, repeats=3, asked={}, models=listed)
    def row(name, kind, text, seconds): return dict(step='recording', recording=name, set=kind, text=text, language='en', seconds=seconds, condition='clean')
    return [machine, *(row(f'clip{place}', 'clips', text if known else None, 3.0) for place, text in enumerate(TEXTS)),
        row('long', 'long', ' '.join(TEXTS) if known else None, 120.0), row('silence', 'wordless', '', 10.0)]


def case_rows(case, paces, lost=0, memory=500_000_000, invented='', clip_paces=None):
    "The rows of a case: seconds per minute of audio for each round (of clips, if they are others), and how many of the texts lose their last word."
    rows = []
    for number, pace in enumerate(paces, 1):
        words = [text.rsplit(' ', 1)[0] if place < lost else text for place, text in enumerate(TEXTS)]
        rows += [heard_row(case, number, f'clip{place}', 3/60*(clip_paces or paces)[number - 1], text) for place, text in enumerate(words)]
        rows.append(heard_row(case, number, 'long', 2*pace, ' '.join(words)))
        if number == 1: rows += [heard_row(case, 1, 'silence', 0.1, invented), heard_row(case, 1, 'silence', 0.05, '', True)]
        rows.append(trial_row(case, number, peak_memory=memory))
    return rows


@some.composite
def runs(draw, least=1, rounds=some.integers(1, 3)):
    "Rows of a whole run."
    keys = [f'{model}, {backend}, cpu, {asked}, beam {beam}, batch 1' for model, backend in (('demo', 'transformers'), ('demo-ct2', 'faster-whisper')) for asked in ('float32', 'int8') for beam in (1, 5)]
    chosen = draw(some.lists(some.sampled_from(keys), min_size=least, max_size=6, unique=True))
    number = draw(rounds)
    rows = first_rows()
    for key in chosen:
        rows += case_rows(key, draw(some.lists(some.floats(0.2, 20), min_size=number, max_size=number)), draw(some.integers(0, len(TEXTS))), draw(some.sampled_from([300_000_000, 500_000_000, 900_000_000])))
        if draw(some.booleans()) and draw(some.booleans()): rows.append(trial_row(key, number + 1, status='killed', problem='killed'))
    return rows


@quick
@given(some.lists(some.tuples(some.integers(1, 8), some.integers(0, 5)), max_size=20))
def test_the_front_is_what_nothing_beats(points):
    import pandas as pd
    frame = pd.DataFrame(points, columns=['rtfx', 'wer_worst'], dtype=float)
    def beaten(one): return any(other[0] >= one[0] and other[1] <= one[1] and other != one for other in points)
    front = pareto_front(frame)
    assert sorted(front.index) == [place for place, one in enumerate(points) if not beaten(one)]
    assert front.rtfx.is_monotonic_decreasing and front.wer_worst.is_monotonic_decreasing
    assert front.index.equals(pareto_front(frame.rename(columns=dict(wer_worst='size')), by='size').index)


FIGURES = some.fixed_dictionaries(dict(wer=some.sampled_from([0.0, 0.01, 0.02, 0.5]), wer_long=some.sampled_from([0.0, 0.03, math.nan]), failed_rounds=some.integers(0, 1),
    device=some.sampled_from(['cpu', 'cuda']), peak_memory=some.sampled_from([1e9, 2e9]), peak_gpu_memory=some.sampled_from([1e9, 5e9, math.nan])))


@quick
@given(some.lists(FIGURES, min_size=1, max_size=8), some.sampled_from([0.0, 0.01, 1.0]), some.sampled_from([None, 1, 2, 10]))
def test_what_is_within_the_limits_keeps_to_each(figures, loss, memory):
    import pandas as pd
    frame = pd.DataFrame(figures)
    out = left_out(frame, Limits(loss, memory)).any(axis=1)
    for line, is_out in zip(figures, out):
        errors = [line[name] - frame[name].min() for name in ('wer', 'wer_long') if frame[name].notna().any()]
        needed = max([line['peak_memory']] + ([line['peak_gpu_memory']] if line['device'] == 'cuda' or line['peak_gpu_memory'] == line['peak_gpu_memory'] else []), key=lambda each: math.inf if each != each else each)
        kept = all(each <= loss + 1e-9 for each in errors) and not line['failed_rounds'] and (memory is None or needed <= memory*1e9)
        assert is_out == (not kept)


@slow
@given(runs(), some.sampled_from([0.0, 0.05, 0.2, 1.0]), some.sampled_from([None, 0.1, 0.4, 0.6]))
def test_a_recommended_setting_is_within_the_limits_and_the_fastest_there(rows, loss, memory):
    frame, found = cases_frame(rows), recommend(rows, loss, memory)
    within = frame[~left_out(frame, Limits(loss, memory)).any(axis=1)]
    assert (found.setting is None) == within.empty == (found.per_model == ())
    assert found.words.strip() and 'nan' not in found.words.lower().replace('nano', '')
    if found.setting is None: return
    mine = frame.loc[found.case]
    assert mine.rtfx == within.rtfx.max() == found.setting.rtfx and not mine.failed_rounds
    assert mine.wer <= frame.wer.min() + loss + 1e-6 and mine.wer_long <= frame.wer_long.min() + loss + 1e-6
    assert memory is None or found.setting.peak_memory <= memory*1e9
    assert found.per_model[0] == found.setting and len({each.model for each in found.per_model}) == len(found.per_model)
    json.dumps([each.__dict__ for each in found.per_model])  # plain numbers and texts


@slow
@given(runs(), some.sampled_from([0.01, 0.5, 3.0, 100.0]))
def test_a_slower_machine_gets_the_same_recommendation(rows, factor):
    slower = [row | dict(seconds=factor*row['seconds']) if row['step'] == 'heard' else row for row in rows]
    before, after = recommend(rows), recommend(slower)
    assert before.case == after.case
    if before.setting: assert math.isclose(before.setting.rtfx, factor*after.setting.rtfx)


@slow
@given(runs(rounds=some.just(3)), runs(rounds=some.just(3)))
def test_worse_one_way_is_better_the_other_way(one, other):
    there, back = compare(one, other), compare(other, one)
    opposite = dict(worse='better', better='worse')
    def verdicts(found, turn): return sorted((each.case, each.what, turn.get(each.verdict, each.verdict)) for each in found.changes)
    assert verdicts(there, {}) == verdicts(back, opposite)
    assert there.ok == (not back.of('better')) and there.by_chance == back.by_chance


@slow
@given(runs())
def test_a_run_beside_itself_is_the_same(rows):
    found = compare(rows, rows)
    assert found.ok and not found.notes and {each.verdict for each in found.changes} <= {'same'}


KEY = 'demo, transformers, cpu, float32, beam 5, batch 1'


@pytest.mark.parametrize('before, after, verdict', [
    ([1, 1.01, 1.02], [1.5, 1.6, 1.7], 'worse'), ([1.5, 1.6, 1.7], [1, 1.01, 1.02], 'better'),
    ([1, 1.01, 1.02], [1.03, 1.04, 1.05], 'same'),  # apart, but below the threshold
    ([1, 1.2, 2], [1.1, 1.9, 2.5], 'cannot tell'),  # above the threshold, but the rounds overlap
    ([1], [9, 9, 9], 'cannot tell'), ([1], [1.01], 'same')])
def test_speed_is_judged_by_size_and_by_overlap(before, after, verdict):
    found = compare(first_rows() + case_rows(KEY, before), first_rows() + case_rows(KEY, after))
    assert [each.verdict for each in found.changes if each.what in ('speed', 'latency')] == [verdict]*2


def said_otherwise(rows, change):
    "Rows in which some recordings are heard as something else: (name, round, text) → text."
    return [row | dict(text=change(row['recording'], row['round'], row['text'])) if row['step'] == 'heard' else row for row in rows]


def verdicts(before, after, what): return [each.verdict for each in compare(before, after).changes if each.what == what]


def test_a_ruined_long_recording_is_worse_though_every_clip_is_right():
    rows = first_rows() + case_rows(KEY, [1, 1, 1])
    ruined = said_otherwise(rows, lambda name, number, text: 'set a timer' if name == 'long' else text)
    assert verdicts(rows, ruined, 'words of the clips') == ['same'] and verdicts(rows, ruined, 'words of the long one') == ['worse']
    assert verdicts(ruined, rows, 'words of the long one') == ['better'] and not compare(rows, ruined).ok
    unsteady = said_otherwise(ruined, lambda name, number, text: 'call alice' if name == 'long' and number == 3 else text)
    assert verdicts(rows, unsteady, 'words of the long one') == ['cannot tell']


def test_few_clips_with_an_error_more_prove_nothing():
    rows = first_rows() + case_rows(KEY, [1, 1, 1])
    assert verdicts(rows, first_rows() + case_rows(KEY, [1, 1, 1], lost=1), 'words of the clips') == ['cannot tell']
    assert verdicts(rows, first_rows() + case_rows(KEY, [1, 1, 1], lost=4), 'words of the clips') == ['worse']


def test_invented_words_are_worse_and_a_slow_start_only_when_it_is_felt():
    rows = first_rows() + case_rows(KEY, [1, 1, 1])
    talking = said_otherwise(rows, lambda name, number, text: 'thank you' if name == 'silence' else text)
    assert verdicts(rows, talking, 'invented words') == verdicts(rows, talking, 'invented words with VAD') == ['worse'] and not compare(rows, talking).ok
    def later(seconds): return [row | dict(load_seconds=row['load_seconds'] + seconds) if row['step'] == 'trial' else row for row in rows]
    assert [verdicts(rows, later(seconds), 'start') for seconds in (0.9, 1.1)] == [['same'], ['worse']]


def test_nothing_in_common_is_no_success():
    rows = first_rows() + case_rows(KEY, [1, 1, 1])
    nothing = compare(first_rows(), first_rows())
    assert not nothing.ok and 'nothing to compare' in nothing.summary and json.loads(nothing.to_json())['ok'] is False
    assert not compare(first_rows(), rows).ok


def write(directory, rows):
    directory.mkdir()
    (directory/'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return directory


def test_the_command_names_the_case_that_became_worse(tmp_path, whisper_nb):
    other = KEY.replace('beam 5', 'beam 1')
    before = write(tmp_path/'before', first_rows() + case_rows(KEY, [1, 1.01, 1.02]) + case_rows(other, [1, 1.01, 1.02]))
    after = write(tmp_path/'after', first_rows() + case_rows(KEY, [1.5, 1.6, 1.7]) + case_rows(other, [1, 1.01, 1.02]))
    done = whisper_nb('bench-compare', before, after)
    assert done.returncode == 1 and [line for line in done.stdout.splitlines() if '❌' in line and 'slower' in line and KEY in line], done.stdout + done.stderr
    assert other not in done.stdout and done.stdout.startswith('2 cases compared') and 'to themselves' in done.stdout
    none = whisper_nb('bench-compare', before, write(tmp_path/'none', first_rows()))
    assert none.returncode == 1 and KEY in none.stdout, none.stdout + none.stderr


def test_chance_is_that_of_drawing_cards():
    draw = random.Random(0)
    def separated(one, other):
        cards = draw.sample(range(one + other), one + other)
        return min(cards[:one]) > max(cards[one:])
    for one, other in ((3, 3), (2, 2), (1, 3)):
        assert abs(sum(separated(one, other) for _ in range(20_000))/20_000 - chance(one, other)) < 0.01


def test_vanished_failed_and_refused_cases_are_worse_and_say_why():
    rows = first_rows() + case_rows(KEY, [1, 1, 1]) + case_rows(OTHER := KEY.replace('beam 5', 'beam 1'), [1, 1, 1])
    refused = trial_row(KEY, None) | dict(case='demo, transformers', model='demo', device=None, asked=None, compute_type=None, beam_size=None, batch_size=None, threads=None, status='missing', problem='transformers is not installed')
    killed = [row | dict(status='killed', problem='no memory') if row['step'] == 'trial' and row['case'] == KEY and row['round'] == 2 else row for row in rows]
    gone = compare(rows, [row for row in rows if row.get('case') != KEY]).of('worse')
    assert [(each.case, each.what) for each in gone] == [(KEY, 'case')] and 'not in the run' in gone[0].words
    missing = compare(rows, [row for row in rows if row.get('case') not in (KEY, OTHER)] + case_rows('demo-ct2, faster-whisper, cpu, int8, beam 1, batch 1', [1]) + [refused]).of('worse')
    assert all('not installed' in each.words for each in missing) and len(missing) == 2
    assert '33%' in compare(rows, killed).of('worse')[0].words and not recommend(killed).case == KEY


def test_the_recordings_of_a_killed_trial_do_not_count():
    rows = first_rows() + case_rows(KEY, [1, 1, 1])
    half = [heard_row(KEY, 4, 'clip0', 1000.0, 'nonsense'), trial_row(KEY, 4, status='killed', problem='no memory')]
    before, after = cases_frame(rows).loc[KEY], cases_frame(rows + half).loc[KEY]
    assert after.failed_rounds == 1 and after.rounds == 3
    assert before.drop('failed_rounds').astype(str).equals(after.drop('failed_rounds').astype(str))
    assert list(failures_table(rows + half)['what']) == ['killed']


@pytest.mark.parametrize('end', ['', '\n', '{"step": "heard", "case', '{"step": "heard", "text": "schö'])
def test_a_file_cut_in_its_last_line_is_read(tmp_path, end):
    rows, file = first_rows() + case_rows(KEY, [1]), tmp_path/'rows.jsonl'
    data = ('\n'.join(json.dumps(row) for row in rows) + '\n' + end).encode()
    file.write_bytes(data[:-1] if end.endswith('ö') else data)  # in the middle of a letter
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        assert read_results(file) == rows
    assert len(said) == (1 if end.strip() else 0)


def test_what_is_no_run_is_refused(tmp_path):
    file = tmp_path/'rows.jsonl'
    for text in ('', '[]\n', '{"step": "machine"}\n', 'x\n'):
        file.write_text(text)
        with pytest.raises(RequestError), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            read_results(file)
    file.write_text('\n'.join([json.dumps(first_rows()[0]), '{broken', '{"step": "x"}']))
    with pytest.raises(CheckError): read_results(file)
    with pytest.raises(RequestError): read_results(tmp_path/'none.jsonl')


def test_without_texts_there_is_speed_but_no_recommendation():
    rows = first_rows(known=False) + case_rows(KEY, [1, 1, 1])
    frame, found = cases_frame(rows), recommend(rows)
    assert frame.wer_worst.isna().all() and frame.rtfx.notna().all() and not frame.on_front.any()
    assert found.setting is None and 'no texts' in found.words
    assert len(speed_table(rows)) == 1 and compare(rows, rows).ok


def test_random_weights_get_no_score_and_no_recommendation():
    rows = first_rows() + case_rows(KEY, [1, 1, 1]) + case_rows('demo-ct2, faster-whisper, cpu, int8, beam 1, batch 1', [9, 9, 9])
    def drawn(names): return [row | dict(models=[each | dict(random=each['model'] in names) for each in row['models']]) if row['step'] == 'machine' else row for row in rows]
    assert recommend(drawn({'demo', 'demo-ct2'})).setting is None and 'random' in recommend(drawn({'demo', 'demo-ct2'})).words
    assert recommend(drawn({'demo'})).setting.model == 'models/demo-ct2'  # the slower one, but one that says something
    assert cases_frame(drawn({'demo'})).wer.isna().tolist() == [True, False]


def test_rounds_that_heard_other_words_are_named():
    rows = first_rows() + case_rows(KEY, [1, 1, 1])
    rows = [row | dict(text='call bob') if row['step'] == 'heard' and row['round'] == 3 and row['recording'] == 'clip2' else row for row in rows]
    assert cases_frame(rows).texts_differ.tolist() == [True] and 'heard other words' in recommend(rows).words
    assert list(accuracy_table(rows)['rounds differ']) == ['yes'] and cases_frame(rows).wer.tolist() == [0.0]  # the first round is scored


def test_figures_are_what_a_pocket_calculator_says():
    import pandas as pd
    row = cases_frame(first_rows() + case_rows(KEY, [2, 1, 4], lost=1, invented='thank you')).loc[KEY]
    assert [row.rtfx, row.rtfx_low, row.rtfx_high] == pytest.approx([30, 15, 60]) and row.rtfx_long == pytest.approx(30)
    assert [row.p50, row.vad, row.encode, row.other] == pytest.approx([0.1, 0, 0.5*7/3, 0.2*7/3])
    words = sum(len(text.split()) for text in TEXTS)
    assert [row.wer, row.wer_long, row.hallucinated, row.hallucinated_vad] == pytest.approx([1/words, 1/words, 12, 0], rel=0.1)
    assert not pd.isna(row.wer_high) and row.deletions == 1


def test_with_a_gpu_both_memories_count():
    key = KEY.replace('cpu', 'cuda')
    rows = first_rows() + case_rows(KEY, [5, 5, 5]) + [row | dict(peak_gpu_memory=3_000_000_000, energy_joules=66.0) if row['step'] == 'trial' else row for row in case_rows(key, [1, 1, 1])]
    assert recommend(rows).case == key and recommend(rows, max_memory=2).case == KEY
    assert cases_frame(rows).joules_per_minute[key] == pytest.approx(66/2.2) and 'peak GPU memory' in speed_table(rows)


def test_gpu_memory_that_nobody_knows_is_beyond_every_limit():
    key = KEY.replace('cpu', 'cuda')
    rows = first_rows() + case_rows(KEY, [5, 5, 5]) + case_rows(key, [1, 1, 1])
    assert recommend(rows).case == key and recommend(rows, max_memory=100).case == KEY
    assert 'its GPU memory is not known' in recommend(rows, max_memory=100).words


def test_clips_and_a_long_recording_may_be_in_opposite_order():
    "The one is the fastest over both and on the long recording, the other on clips: both figures are given, and the reader is told."
    other = 'demo-ct2, faster-whisper, cpu, float32, beam 5, batch 1'
    rows = first_rows() + case_rows(KEY, [1, 1, 1], clip_paces=[5, 5, 5]) + case_rows(other, [2, 2, 2], clip_paces=[1, 1, 1])
    found = recommend(rows)
    assert found.case == KEY and '60 s of a long recording' in found.words and '12 s of clips of about 3 s, which fill a window' in found.words
    assert 'on clips 0.2 times as fast, on the long recording 2.0 times as fast' in found.words
    assert re.search(r'On the clips alone `demo-ct2` .* is faster: 60 s of audio per second and not 12', found.words) and 'On the long recording alone' not in found.words


def test_one_case_is_said_to_be_the_only_one():
    words = recommend(first_rows() + case_rows(KEY, [1, 1, 1])).words
    assert 'the only case that was measured' in words and 'Of 1' not in words
    assert words.rstrip().endswith('`--backend transformers --device cpu --compute-type float32 --beam-size 5 --batch-size 1 --threads 2`.')


@slow
@given(runs(), some.sampled_from([0.01, 0.1, 0.4]))
def test_the_limits_it_advises_let_something_in(rows, memory):
    found = recommend(rows, 0.0, memory)
    options = re.findall(r'bench-report ROWS([^`]*)`', found.words) if found.setting is None else []
    for each in options:
        limits = dict(re.findall(r'--max-(\S+) (\S+)', each))
        assert recommend(rows, float(limits.get('wer-loss', 0.01)), float(limits['memory']) if 'memory' in limits else None).setting
    assert found.setting or options or 'failed in some round' in found.words


def test_words_where_nobody_speaks_are_told_by_recordings():
    words = recommend(first_rows() + case_rows(KEY, [1, 1, 1], invented='thank you')).words
    assert 'In 1 of 1 recordings in which nobody speaks (silence) it writes words: 2 in 10 s (12.0 a minute). With `--vad` it does so in none' in words
    assert list(accuracy_table(first_rows() + case_rows(KEY, [1, 1, 1], invented='thank you'))['wordless clips with words']) == ['1 of 1']


def test_enough_words_and_no_warning():
    texts = [' '.join(random.Random(place).choices(TEXTS, k=20)) for place in range(20)]
    rows = first_rows()[:1] + [row for row in first_rows() if row.get('set') == 'long'] + [first_rows()[1] | dict(recording=f'r{place}', text=text) for place, text in enumerate(texts)]
    rows += [heard_row(KEY, number, f'r{place}', 1.0, text) for number in (1, 2) for place, text in enumerate(texts)] + [heard_row(KEY, number, 'long', 1.0, ' '.join(TEXTS)) for number in (1, 2)]
    rows += [trial_row(KEY, number) for number in (1, 2)]
    assert 'words were scored' not in recommend(rows).words and 'cannot be checked' not in recommend(rows, 0.01).words
    assert 'is not proven' in recommend(rows, 0.0015).words and 'cannot be checked' in recommend(rows, 0.0001).words


def test_of_many_recordings_the_worst_are_shown():
    names = [f'r{place}' for place in range(50)]
    rows = first_rows()[:1] + [first_rows()[1] | dict(recording=name, text='turn it on ' * 60) for name in names]
    rows += [heard_row(KEY, 1, name, 1.0, 'turn it on ' * 60 if name != 'r49' else 'off') for name in names] + [trial_row(KEY, 1)]
    table = recordings_table(rows)
    assert len(table) == 31 and table.recording.iloc[0] == 'r49' and '20 more' in table.recording.iloc[-1] and table.text.str.len().max() <= 80


def test_no_case_at_all():
    rows = first_rows()
    assert list(cases_frame(rows).columns) == COLUMNS and cases_frame(rows).empty
    for table in (speed_table, accuracy_table, parts_table, failures_table): assert table(rows).empty
    assert len(recordings_table(rows)) == 6 and recommend(rows).setting is None and compare(rows, rows).compared == 0
