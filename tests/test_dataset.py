"Every layout recordings are kept in is read as it is written elsewhere; what is wrong with one is said in two lines."
import csv
import json
import pickle
import shutil

import numpy as np
import pytest
import soundfile

from whisper_nb.audio import SAMPLING_RATE, clips, load_audio
from whisper_nb.dataset import Recording, long_recording, read_dataset, wordless_recordings
from whisper_nb.errors import RequestError

ONE, TWO = clips()[:2]


def put(clip, folder, name=None):
    "Copy a clip into a folder."
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.copy(clip.path, folder / (name or clip.path.name))


def facts(found): return [(each.name, each.text, each.language, round(each.seconds, 2)) for each in found]


def of(clip, name=None, language='en'): return (name or clip.path.stem, clip.text, language, round(clip.seconds, 2))


def write(file, rows):
    "A manifest, in the format its name says."
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in ('.jsonl', '.json'): file.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), encoding='utf-8')
    else:
        with open(file, 'w', newline='', encoding='utf-8') as out:
            made = csv.DictWriter(out, rows[0], delimiter='\t' if file.suffix == '.tsv' else ',')
            made.writeheader()
            made.writerows(rows)
    return file


def test_a_folder_with_texts_beside_the_audio(tmp_path):
    for clip in (ONE, TWO): put(clip, tmp_path / 'in' / 'here')
    (tmp_path / 'in' / 'here' / f'{ONE.path.stem}.txt').write_text(f'\ufeff{ONE.text}\n\n', encoding='utf-8')
    (tmp_path / 'in' / 'notes.txt').write_text('of no recording')
    assert sorted(facts(read_dataset(tmp_path / 'in'))) == sorted([of(ONE, language=None), (TWO.path.stem, None, None, round(TWO.seconds, 2))], key=str)


@pytest.mark.parametrize('audio, text', [('audio', 'text'), ('path', 'sentence'), ('file', 'transcript'), ('Audio_FilePath', 'Transcription')])
@pytest.mark.parametrize('name', ['mine.csv', 'mine.tsv', 'mine.jsonl'])
def test_manifests(tmp_path, name, audio, text):
    for clip in (ONE, TWO): put(clip, tmp_path / 'audio')
    rows = [{audio: f'audio/{clip.path.name}', text: clip.text, 'locale': 'en-US', 'id': f'no-{place}', 'category': 'home'} for place, clip in enumerate((ONE, TWO))]
    found = read_dataset(write(tmp_path / name, rows))
    assert facts(found) == [of(ONE, 'no-0'), of(TWO, 'no-1')] and found[0].condition == 'home'
    assert np.array_equal(found[1].samples(), load_audio(TWO.path))


def test_quotes_commas_and_empty_texts(tmp_path):
    put(ONE, tmp_path)
    rows = [dict(file=ONE.path.name, text=text) for text in ('she said, "go"\nand left', '')]
    found = read_dataset(write(tmp_path / 'mine.csv', rows))
    assert [(each.set, each.text) for each in found] == [('clips', 'she said, "go" and left'), ('wordless', '')]
    assert [each.text for each in read_dataset(write(tmp_path / 'mine.jsonl', [*rows, dict(file=ONE.path.name, text=None)]))][1:] == ['', None]


def test_audio_folder(tmp_path):
    put(ONE, tmp_path / 'train')
    for name in ('metadata.csv', 'metadata.jsonl'):
        write(tmp_path / name, [dict(file_name=f'train/{ONE.path.name}', transcription=ONE.text)])
        assert facts(read_dataset(tmp_path)) == [of(ONE, language=None)]
        (tmp_path / name).unlink()


def test_common_voice(tmp_path):
    put(ONE, tmp_path / 'clips', 'common_voice_en_1.flac')
    (tmp_path / 'test.tsv').write_text('client_id\tpath\tsentence\tup_votes\tlocale\nab12\tcommon_voice_en_1.flac\t"Go, he said\t2\ten\n')
    assert facts(read_dataset(tmp_path / 'test.tsv')) == [('common_voice_en_1', '"Go, he said', 'en', round(ONE.seconds, 2))]  # a quote is a quote


def test_nemo_with_stretches_of_one_file(tmp_path):
    path = str(put(ONE, tmp_path))
    rows = [dict(audio_filepath=path, duration=ONE.seconds, text='whole'), dict(audio_filepath=path, offset=0.5, duration=1.0, text='part'), dict(audio_filepath=path, offset=1.0, text='rest')]
    found = read_dataset(write(tmp_path / 'manifest.json', rows))
    assert [each.name for each in found] == [ONE.path.stem, f'{ONE.path.stem} (2)', f'{ONE.path.stem} (3)']
    assert [round(each.seconds, 2) for each in found] == [round(each, 2) for each in (ONE.seconds, 1.0, ONE.seconds - 1)]
    assert np.array_equal(found[1].samples(), load_audio(ONE.path)[8_000:24_000])
    assert len(found[2].samples()) == len(load_audio(ONE.path)) - SAMPLING_RATE


def test_librispeech(tmp_path):
    chapter = tmp_path / 'LibriSpeech' / 'test-clean' / '61' / '70968'
    put(ONE, chapter, '61-70968-0000.flac'), put(TWO, chapter, '61-70968-0001.flac')
    (chapter / '61-70968.trans.txt').write_text(f'61-70968-0000 {ONE.text.upper()}\n61-70968-0001 {TWO.text.upper()}\n')
    (tmp_path / 'LibriSpeech' / 'README.TXT').write_text('about')
    assert facts(read_dataset(tmp_path)) == [('61-70968-0000', ONE.text.upper(), 'en', round(ONE.seconds, 2)), ('61-70968-0001', TWO.text.upper(), 'en', round(TWO.seconds, 2))]


def test_names_are_unique(tmp_path):
    for folder in ('a', 'b'): put(ONE, tmp_path / folder, 'same.flac')
    put(TWO, tmp_path)
    assert [each.name for each in read_dataset(tmp_path)] == ['a/same', 'b/same', TWO.path.stem]


def test_what_is_wrong_is_said(tmp_path):
    def fails(source, words):
        with pytest.raises(RequestError, match=words) as caught: read_dataset(source)
        assert '\n' not in caught.value.what and caught.value.advice
    fails(tmp_path / 'nowhere', 'there is no')
    fails(tmp_path, 'no audio in')
    write(tmp_path / 'a.csv', [dict(sound='a.wav', text='x')])
    fails(tmp_path / 'a.csv', 'no column for the audio; its columns: sound, text')
    with pytest.raises(RequestError) as caught: read_dataset(tmp_path)
    assert str(tmp_path / 'a.csv') in caught.value.advice  # the manifest in it
    fails(write(tmp_path / 'b.csv', [dict(audio='a.wav', words='x')]), 'no column for the text; its columns: audio, words')
    fails(write(tmp_path / 'c.jsonl', [dict(audio=f'{name}.wav', text='x') for name in 'ab']), '2 of the 2 audio files are not there, the first: .*a.wav')
    fails(write(tmp_path / 'd.jsonl', [dict(audio='a.csv', text='x')]), "a.csv' is not audio")
    (tmp_path / 'e.jsonl').write_text('audio: a.wav\n')
    fails(tmp_path / 'e.jsonl', 'is not JSON')
    (tmp_path / 'e.json').write_text('[1, 2]')
    fails(tmp_path / 'e.json', 'other than objects')
    (tmp_path / 'f.csv').write_bytes('audio,text\nä.wav,x\n'.encode('latin-1'))
    fails(tmp_path / 'f.csv', 'no text in UTF-8')
    put(ONE, tmp_path / 'old', 'one.flac')
    (tmp_path / 'old' / 'one.txt').write_bytes('ä'.encode('latin-1'))
    fails(tmp_path / 'old', "'one.txt' is no text in UTF-8")
    shutil.rmtree(tmp_path / 'old')
    (tmp_path / 'g.csv').write_text('audio,text\n')
    fails(tmp_path / 'g.csv', 'lists no recording')
    (tmp_path / 'g.mp3').write_text('x')
    fails(tmp_path / 'g.mp3', 'is no manifest')
    put(ONE, tmp_path / 'audio', 'one.flac')
    fails(write(tmp_path / 'h.jsonl', [dict(audio='audio/one.flac', text='x', offset='soon')]), 'no number')
    for times, words in ((dict(offset=60), 'asks for the rest from 60 s on'), (dict(offset=-1, duration=1), 'asks for 1 s from -1 s on'), (dict(offset=float('nan')), 'from nan s on'), (dict(offset=0.1, duration=0), 'asks for 0 s from 0.1 s on'),
            (dict(offset=0, duration=-2), 'asks for -2 s from 0 s on'), (dict(offset=0, duration=float('nan')), 'asks for nan s')):
        fails(write(tmp_path / 'i.jsonl', [dict(audio='audio/one.flac', text='x', **times)]), words)


def test_a_film_without_a_sound_track_and_a_file_without_a_duration(tmp_path, silent_film):
    with pytest.raises(RequestError, match='silent.mp4.*no audio track'): read_dataset(tmp_path)
    (tmp_path / 'silent.mp4').unlink()
    soundfile.write(tmp_path / 'live.ogg', load_audio(ONE.path), SAMPLING_RATE)
    assert abs(read_dataset(tmp_path)[0].seconds - ONE.seconds) < 0.1


def test_a_few_of_many_are_spread_over_the_list():
    everything = read_dataset()
    assert read_dataset(limit=3) == [everything[place] for place in (0, 2, 5)] and read_dataset(limit=100) == everything == read_dataset(limit=0)


def test_recordings_go_to_other_processes():
    for each in (read_dataset()[0], long_recording(read_dataset(), 30), wordless_recordings()[-1]):
        assert np.array_equal(pickle.loads(pickle.dumps(each)).samples(), each.samples())


def test_joined_recordings_are_where_they_should_be():
    parts = read_dataset()[:3]
    long = long_recording(parts, 100)
    samples = long.samples()
    assert (long.set, long.seconds, len(samples)) == ('long', 120, 120*SAMPLING_RATE) and long.text.split() == ' '.join(part.text for part in [*parts, parts[0]]).split()
    for place, part in enumerate([*parts, parts[0]]):
        window = samples[place*30*SAMPLING_RATE:(place + 1)*30*SAMPLING_RATE]
        said = part.samples()
        assert np.array_equal(window[:len(said)], said) and not window[len(said):].any()


def test_joined_in_one_language_and_with_windows_as_needed():
    def made(name, text, language, seconds): return Recording(name, 'clips', text, language, seconds, read=lambda: np.ones(round(seconds*SAMPLING_RATE), np.float32))
    parts = [made('a', 'eins', 'de', 31.0), made('b', 'one', 'en', 30.0), made('c', 'zwei', 'de', 30.0), made('d', '', 'de', 5.0)]
    long = long_recording(parts, 80)
    assert (long.text, long.language, long.seconds) == ('eins zwei', 'de', 90) and len(long.samples()) == 90*SAMPLING_RATE
    unknown = long_recording([made('a', None, None, 2.0)], 5, pause=1.0)
    assert unknown.text is None and unknown.seconds == 6 and unknown.samples().sum() == 4*SAMPLING_RATE
    with pytest.raises(RequestError, match='none of the recordings has words'): long_recording([parts[3]])


def test_sounds_without_words_are_heard_and_not_too_loud():
    found = wordless_recordings()
    assert len({each.name for each in found}) == len(found) >= 7 and {each.set for each in found} == {'wordless'}
    assert not {each.name for each in found} & {each.name for each in read_dataset()}
    for each in found:
        loudness = 20*np.log10(np.sqrt(np.mean(each.samples()**2)) + 1e-9)
        assert each.condition == 'silence' or -50 < loudness < -15, (each, loudness)
