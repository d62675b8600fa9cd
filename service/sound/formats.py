"""What is read: its names in sentences, the suffixes of its files, FFmpeg's allowlists.

FFmpeg knows hundreds of formats, some of which open other files or URLs: only CONTAINERS and CODECS are
opened.
"""

KNOWN_FORMATS = "WAV, FLAC, Ogg Vorbis or Opus, MP3, AIFF, M4A, AAC, WebM, WMA or AMR"

# Of the files taken from a folder; a file that is named is opened whatever its suffix.
SUFFIXES = frozenset(
    {".3gp", ".aac", ".adts", ".aif", ".aifc", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".m4b"}
    | {".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpga", ".oga", ".ogg", ".opus", ".rf64", ".snd"}
    | {".w64", ".wav", ".wave", ".weba", ".webm", ".wma"}
)

CONTAINERS = "aac,aiff,amr,asf,caf,flac,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,ogg,wav,w64"
CODECS = (
    "aac,aac_fixed,aac_latm,alac,amrnb,amrwb,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,flac,gsm,gsm_ms,libopus,"
    "mp1,mp1float,mp2,mp2float,mp3,mp3float,opus,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,"
    "pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s8,pcm_u8,vorbis,wmav1,wmav2"
)
