"One call and one command: any recording, several of them, every format; what cannot be read is named."
import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import av
import numpy as np
import pytest
import soundfile

from conftest import COMMAND, listen_to_ctrl_c

from whisper_nb.audio import clips, default_clip, load_audio
from whisper_nb.backends import load
from whisper_nb.convert import convert
from whisper_nb.errors import RequestError
from whisper_nb.models import DEMO_DIR
from whisper_nb.transcribe import transcribe
from whisper_nb.writers import WRITERS, write_as

CLIP = default_clip()


@pytest.fixture(scope='session')
def converted(tmp_path_factory):
    "The demo model as faster-whisper takes it: a command with it is done in a second or two."
    source = shutil.copytree(DEMO_DIR, tmp_path_factory.mktemp('models')/'demo')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        return convert(source, 'float32').path


@pytest.fixture(scope='session')
def demo(converted): return load(converted, device='cpu')


def spoken(): return soundfile.read(CLIP.path, dtype='float32')


def write(path, rate=None, channels=1, **options):
    "The clip in another shape."
    samples, own = spoken()
    if rate: samples = np.interp(np.arange(0, len(samples), own/rate), np.arange(len(samples)), samples).astype(np.float32)
    soundfile.write(path, np.stack([samples]*channels, axis=1) if channels > 1 else samples, rate or own, **options)
    return path


def video(path):
    "A video whose sound is the clip."
    samples = (load_audio(CLIP.path)*32767).astype(np.int16)
    with av.open(str(path), 'w') as container:
        picture, sound = container.add_stream('mpeg4', rate=5), container.add_stream('aac', rate=16_000)
        picture.width, picture.height, picture.pix_fmt = 64, 64, 'yuv420p'
        for _ in range(15): container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        frame = av.AudioFrame.from_ndarray(samples[None], format='s16', layout='mono')
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux([*picture.encode(), *sound.encode(frame), *sound.encode()])
    return path


@pytest.mark.parametrize('name, options', [('stereo.wav', dict(rate=44_100, channels=2)), ('five-one.flac', dict(rate=48_000, channels=6)), ('telephone.wav', dict(rate=8_000, subtype='ULAW')),
    ('studio.wav', dict(rate=96_000, subtype='PCM_24')), ('podcast.mp3', dict(rate=32_000)), ('note.ogg', dict(rate=24_000))])
def test_any_rate_channels_and_container(demo, tmp_path, name, options):
    assert transcribe(write(tmp_path/name, **options), demo, language='en').text == CLIP.text


def test_video(demo, tmp_path): assert transcribe(video(tmp_path/'film.mp4'), demo, language='en').text == CLIP.text


def test_a_long_recording(demo):
    "Ten minutes: a phrase every half minute, heard by windows."
    heard = [clip for clip in clips() if clip.condition == 'clean'][:2]
    parts = [load_audio(clip.path) for clip in heard]*10
    found = transcribe(np.concatenate([np.pad(part, (0, 30*16_000 - len(part))) for part in parts]), demo, language='en', beam_size=1)
    assert [segment.text.strip() for segment in found.segments] == [clip.text for clip in heard]*10
    assert [int(segment.start//30) for segment in found.segments] == list(range(20)) and found.audio_seconds == 600


def test_several_are_made_when_asked_for(demo):
    made = transcribe([CLIP.path, load_audio(CLIP.path), 'nowhere.wav'], demo, language='en', beam_size=1)
    assert len(made) == 3 and len(made._made) == 0
    assert made[1].transcript.text == CLIP.text and len(made._made) == 1 and made[1] is made[1]
    assert [each.ok for each in made] == [True, True, False] and list(made.problems) == ['nowhere.wav']


def test_what_is_no_recording_is_named_and_skipped(demo, tmp_path):
    (tmp_path/'empty.wav').touch()
    (tmp_path/'text.mp3').write_text('no sound')
    soundfile.write(tmp_path/'nothing.wav', np.zeros(0, np.float32), 16_000)
    names = [tmp_path/name for name in ('empty.wav', 'text.mp3', 'nothing.wav', 'missing.wav')]
    made = transcribe([*names, CLIP.path], demo, language='en', beam_size=1)
    assert [each.ok for each in made] == [False]*4 + [True]
    for name, each in zip(names, made): assert name.name in each.problem.what and each.problem.advice


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError('std::bad_alloc'), RuntimeError('out of range')])
def test_what_cannot_be_transcribed_is_named_and_skipped(demo, error):
    def decode(engine, samples, options):
        if len(samples) > 100_000: raise error
        return demo.backend.decode(engine, samples, options)
    failing = replace(demo, backend=replace(demo.backend, decode=decode))
    made = transcribe([CLIP.path, np.zeros(200_000, np.float32), CLIP.path], failing, language='en', beam_size=1)
    assert [each.ok for each in made] == [True, False, True] and made[1].problem.exit_code == 1 and made[1].problem.advice


def test_what_no_recording_can_change_is_said_at_once(demo):
    for wrong in (dict(language='xx'), dict(batch_size=0)):
        with pytest.raises(RequestError): transcribe([CLIP.path, 'missing.wav'], demo, **wrong)


@pytest.mark.parametrize('wrong', [dict(task='sing'), dict(batch_size=0), dict(temperature=2), dict(beam_size=0), dict(initial_prompt='<|en|>'), dict(language='xx')])
def test_wrong_options(demo, wrong):
    with pytest.raises(RequestError): transcribe(CLIP.path, demo, **wrong)


def test_a_directory_is_no_recording(demo, tmp_path):
    with pytest.raises(RequestError, match='is a directory') as caught: transcribe([CLIP.path, tmp_path], demo)
    assert 'name the recordings' in caught.value.advice


# ---- the command

@pytest.fixture
def command(whisper_nb, converted):
    def run(*words): return whisper_nb('transcribe', *words, '--model', converted, '--language', 'en', '--device', 'cpu', '--beam-size', 1)
    return run


def two_lines(done, code):
    assert (done.returncode, done.stdout) == (code, ''), done
    what, advice = done.stderr.splitlines()
    assert what.startswith('❌ ') and advice.startswith('→ ')
    return what, advice


def test_one_goes_to_standard_output(command, demo):
    done = command(CLIP.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f'{CLIP.text}\n', '')
    done = command(CLIP.path, '--output-format', 'srt', '--word-timestamps', '--max-words-per-line', 2)
    assert done.returncode == 0 and done.stdout.startswith('1\n00:00:00,000 --> ') and 'set a\n' in done.stdout


def test_several_lines_say_which_recording_and_problems_come_at_the_end(command, tmp_path):
    other = next(clip for clip in clips() if clip.condition == 'silence')
    (tmp_path/'text.wav').write_text('no sound')
    done = command(CLIP.path, 'missing.wav', 'text.wav', other.path)
    assert done.returncode == 1 and done.stdout == f'{CLIP.path}: {CLIP.text}\n{other.path}: \n'
    assert [line for line in done.stderr.splitlines() if line.startswith('❌')] == ['❌ there is no audio file missing.wav', next(line for line in done.stderr.splitlines() if 'text.wav' in line)]


def test_files_are_written_and_named(command, demo, tmp_path):
    write(tmp_path/'my talk.v2.wav')
    done = command('my talk.v2.wav', CLIP.path, '--output-dir', 'made/here', '--output-format', 'all', '--word-timestamps')
    assert done.returncode == 0, done
    stems = 'my talk.v2', Path(CLIP.path).stem
    assert done.stdout.splitlines() == [f'made/here/{stem}.{format}' for stem in stems for format in WRITERS]
    assert sorted(os.listdir('made/here')) == sorted(f'{stem}.{format}' for stem in stems for format in WRITERS)
    found = demo.transcribe(CLIP.path, language='en', beam_size=1, word_timestamps=True)
    for format in ('txt', 'srt', 'vtt', 'tsv'): assert Path(f'made/here/{stems[1]}.{format}').read_text() == write_as(found, format)
    assert json.loads(Path(f'made/here/{stems[1]}.json').read_text())['segments'][0]['words'][0]['word'] == ' set'


def test_as_data(command):
    done = command(CLIP.path, 'missing.wav', '--json')
    one, other = json.loads(done.stdout)
    assert done.returncode == 1 and one['text'].strip() == CLIP.text and one['language'] == 'en' and one['audio_seconds'] > 2 and other['problem']['what']


def test_ctrl_c_loses_nothing_that_is_finished(converted, tmp_path):
    clip = load_audio(CLIP.path)
    soundfile.write('long.wav', np.resize(clip, 60*60*16_000), 16_000)
    words = [COMMAND, 'transcribe', CLIP.path, 'long.wav', '--model', converted, '--language', 'en', '--json', '--output-dir', 'made', '--temperature', '0,0.2,0.4']
    running = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c)
    try:
        end = monotonic() + 60
        while not Path('made', f'{Path(CLIP.path).stem}.txt').exists() and monotonic() < end: sleep(0.05)
        sleep(1)
        while True:  # while a recording is decoded, FFmpeg's library can swallow it; whoever presses it presses it again
            running.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                output, errors = running.communicate(timeout=10)
                break
            assert monotonic() < end
    finally: running.kill()
    assert running.returncode == 1 and '❌ stopped' in errors and 'Traceback' not in errors
    assert [row['text'].strip() for row in json.loads(output)] == [CLIP.text]


def test_a_failure_in_the_middle_loses_nothing_that_is_finished(command):
    write(Path('first.wav'))
    Path('made/first.txt').mkdir(parents=True)
    done = command(CLIP.path, 'first.wav', '--json', '--output-dir', 'made')
    assert done.returncode != 0 and [row['text'].strip() for row in json.loads(done.stdout)] == [CLIP.text] and '❌' in done.stderr


def test_where_it_goes_is_checked_before_the_model_is_loaded(whisper_nb):
    Path('file').touch()
    done = whisper_nb('transcribe', CLIP.path, '--model', 'nowhere', '--output-dir', 'file')
    assert done.returncode != 0 and 'nowhere' not in done.stderr and 'file' in done.stderr


@pytest.mark.parametrize('words, what', [
    (('b.wav', '--output-format', 'srt'), 'several recordings as srt'), (('--output-format', 'all'), 'all formats'), (('--output-format', 'docx'), 'docx'),
    (('--highlight-words',), '--highlight-words needs the times'), (('--max-line-count', 2, '--word-timestamps'), 'without max_line_width'),
    (('--temperature', 'warm'), 'warm'), (('--batch-size', 0), 'batch size'), (('--task', 'sing'), 'sing'), (('.',), 'is a directory')])
def test_a_wrong_request(command, words, what): assert what in two_lines(command(CLIP.path, *words), 2)[0]


def test_two_recordings_of_one_name(command, tmp_path):
    for folder in ('a', 'b'):
        (tmp_path/folder).mkdir()
        write(tmp_path/folder/'talk.wav')
    what, _ = two_lines(command('a/talk.wav', 'b/talk.wav', '--output-dir', 'made'), 2)
    assert 'a/talk.wav, b/talk.wav' in what


def test_the_model_is_missing(whisper_nb): two_lines(whisper_nb('transcribe', CLIP.path, '--model', 'nowhere'), 2)


def test_every_option_reaches_the_model(command):
    done = command(CLIP.path, '--vad', '--batch-size', 2, '--temperature', '0,0.2', '--initial-prompt', 'alice', '--backend', 'faster-whisper', '--threads', 1, '--compute-type', 'float32', '--task', 'transcribe')
    assert (done.returncode, done.stdout) == (0, f'{CLIP.text}\n'), done
