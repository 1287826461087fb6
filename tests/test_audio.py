"Any audio comes in as it should; what is no audio is named."
import socket

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_nb.audio import SAMPLING_RATE, clips, default_clip, load_audio
from whisper_nb.errors import CheckError, RequestError


def tone(rate=SAMPLING_RATE, seconds=1.0, amplitude=0.5, pitch=440):
    return amplitude*np.sin(2*np.pi*pitch*np.arange(int(rate*seconds))/rate)


def pitch_of(samples): return np.fft.rfftfreq(len(samples), 1/SAMPLING_RATE)[np.abs(np.fft.rfft(samples)).argmax()]


def test_16_khz_mono_comes_in_bit_for_bit(tmp_path):
    samples = (tone()*32767).astype(np.int16)
    soundfile.write(tmp_path/'exact.wav', samples, SAMPLING_RATE)
    assert np.array_equal(load_audio(tmp_path/'exact.wav')*32768, samples)


def test_stereo_is_the_mean_of_its_channels(tmp_path):
    left, right = tone(pitch=300), tone(amplitude=0.25, pitch=900)
    soundfile.write(tmp_path/'stereo.wav', np.stack([left, right], axis=1), SAMPLING_RATE)
    assert np.allclose(load_audio(tmp_path/'stereo.wav'), (left + right)/2, atol=1e-3)


@pytest.mark.parametrize('rate', [8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
def test_any_rate(tmp_path, rate):
    soundfile.write(tmp_path/'tone.wav', tone(rate, seconds=2), rate)
    samples = load_audio(tmp_path/'tone.wav')
    assert abs(len(samples)/SAMPLING_RATE - 2) < 0.01 and abs(pitch_of(samples) - 440) < 1


@pytest.mark.parametrize('name, subtype', [('a.wav', 'PCM_U8'), ('a.wav', 'PCM_24'), ('a.wav', 'FLOAT'), ('a.wav', 'DOUBLE'), ('a.wav', 'ULAW'), ('a.flac', 'PCM_16'),
    ('a.ogg', 'VORBIS'), ('a.ogg', 'OPUS'), ('a.aiff', 'PCM_16'), ('a.mp3', 'MPEG_LAYER_III')])
def test_any_encoding(tmp_path, name, subtype):
    soundfile.write(tmp_path/name, tone(48_000, seconds=2), 48_000, subtype=subtype)
    samples = load_audio(tmp_path/name)
    assert samples.dtype == np.float32 and abs(len(samples)/SAMPLING_RATE - 2) < 0.1 and abs(pitch_of(samples) - 440) < 1 and 0.4 < abs(samples).max() < 0.6


@pytest.mark.parametrize('name', ['no ending', 'räksmörgås 録音.wav', '-dash.wav', 'a%d:b.wav'])
def test_any_name(tmp_path, name):
    soundfile.write(tmp_path/name, tone(), SAMPLING_RATE, format='WAV')
    assert len(load_audio(str(tmp_path/name))) == SAMPLING_RATE


def test_a_recording_that_was_cut_off_gives_what_is_there(tmp_path):
    whole = default_clip().path.read_bytes()
    (tmp_path/'cut.flac').write_bytes(whole[:len(whole)*2//3])
    assert 0.3 < len(load_audio(tmp_path/'cut.flac'))/len(load_audio(default_clip().path)) < 1


def test_damage_in_the_middle_is_skipped(tmp_path):
    soundfile.write(tmp_path/'tone.mp3', tone(44_100, seconds=4), 44_100)
    data = bytearray((tmp_path/'tone.mp3').read_bytes())
    data[len(data)//2:len(data)//2 + 2000] = bytes(2000)
    (tmp_path/'tone.mp3').write_bytes(data)
    assert len(load_audio(tmp_path/'tone.mp3')) > 3*SAMPLING_RATE


def encoded(path, rate, layout, codec, pitch=440):
    "A second of a tone, as the codec writes it."
    channels = dict(mono=1, stereo=2)[layout]
    samples = np.repeat((16_384*np.sin(2*np.pi*pitch*np.arange(rate)/rate)).astype(np.int16), channels)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples[None], format='s16', layout=layout)
        frame.rate = rate
        fit = av.AudioResampler(format=stream.format, layout=layout, rate=rate, frame_size=stream.frame_size)
        for part in fit.resample(frame) + fit.resample(None): container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize('name, codec, one, other', [
    ('a.mp3', 'libmp3lame', (44_100, 'stereo'), (22_050, 'mono')), ('a.mp3', 'libmp3lame', (16_000, 'mono'), (48_000, 'mono')),
    ('a.aac', 'aac', (44_100, 'stereo'), (16_000, 'mono')), ('a.aac', 'aac', (16_000, 'mono'), (16_000, 'stereo')), ('a.flac', 'flac', (16_000, 'mono'), (16_000, 'mono'))])
def test_files_joined_to_one(tmp_path, name, codec, one, other):
    (tmp_path/name).write_bytes(encoded(tmp_path/f'one-{name}', *one, codec) + encoded(tmp_path/f'other-{name}', *other, codec, pitch=880))
    samples = load_audio(tmp_path/name)
    assert abs(len(samples)/SAMPLING_RATE - 2) < 0.25
    assert [round(pitch_of(part)/20)*20 for part in (samples[2_000:12_000], samples[-10_000:-2_000])] == [440, 880]


def test_a_film_without_sound_is_named(tmp_path, silent_film):
    with pytest.raises(CheckError, match='silent.mp4 holds no audio'): load_audio(tmp_path/'silent.mp4')


def test_a_header_without_samples_is_named(tmp_path):
    soundfile.write(tmp_path/'void.wav', np.zeros(0), SAMPLING_RATE)
    with pytest.raises(CheckError, match='void.wav'): load_audio(tmp_path/'void.wav')


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), head=st.sampled_from([b'', b'RIFF', b'fLaC', b'ID3', b'OggS', b'#EXTM3U\n', b'ffconcat version 1.0\n']))
def test_noise_bytes_are_an_error_of_ours(tmp_path, data, head):
    (tmp_path/'bytes').write_bytes(head + data)
    try: load_audio(tmp_path/'bytes')
    except CheckError as error: assert 'bytes' in error.what and '\n' not in error.what


@pytest.mark.parametrize('text', ['#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n', 'ffconcat version 1.0\nfile http://127.0.0.1:{port}/a.wav\n'])
def test_a_playlist_is_not_followed_to_the_network(tmp_path, text):
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.settimeout(0.2)
        (tmp_path/'list.m3u8').write_text(text.format(port=server.getsockname()[1]))
        with pytest.raises(CheckError): load_audio(tmp_path/'list.m3u8')
        with pytest.raises(TimeoutError): server.accept()


def test_an_address_is_no_file():
    with pytest.raises(RequestError): load_audio('http://127.0.0.1/a.wav')


@pytest.mark.parametrize('array', [np.zeros((2, 100)), np.zeros(0), np.float32(1)])
def test_wrong_arrays(array):
    with pytest.raises(RequestError, match='one dimension'): load_audio(array)


def test_right_arrays():
    assert load_audio(np.array([0, 2**30], np.int32)).tolist() == [0, 0.5]
    assert load_audio(np.array([0.25])).dtype == np.float32


def test_clips_are_what_they_say():
    assert len(clips()) >= 3 and len({clip.path.name for clip in clips()}) == len(clips())
    for clip in clips():
        samples = load_audio(clip.path)
        assert abs(len(samples)/SAMPLING_RATE - clip.seconds) < 0.01 and clip.seconds < 30
        assert bool(clip.text) == (clip.condition not in ('silence', 'noise'))
        assert repr(clip).startswith(f'Clip({clip.path.name}') and '<audio' in clip._repr_html_()
    assert sum(clip.path.stat().st_size for clip in clips()) < 1_000_000
