//! A picture of a prompt, from Rust through the C interface: draw BUNDLE PROMPT LIBONNXRUNTIME > picture.ppm
//!
//!     rustc -O engines/cpp/examples/draw.rs -L build/native -l accelaes -C link-args=-Wl,-rpath,build/native

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::io::Write;
use std::{env, mem, process, ptr};

#[repr(C)]
struct OpenOptions { size: usize, library: *const c_char, engines: *const c_char, threads: c_int, skip_hashes: c_int, allow_code: c_int }
#[repr(C)]
struct RunOptions {
    size: usize, preset: *const c_char, plan: *const c_char, steps: c_int, images: c_int, unguided: c_int,
    guidance: f64, sigmas: *const f32, timesteps: *const f32, seed: u64,
}
#[repr(C)]
struct Prompt { size: usize, text: *const c_char, negative: *const c_char, others: [*const c_char; 4] }
#[repr(C)]
struct Facts {
    size: usize, images: c_int, tokens: c_int, text_tokens: c_int, guided_rows: c_int, uncond_first: c_int, steps: c_int,
    guidance: f64, latent_rank: c_int, latent_shape: [i64; 4], presets: c_int, encodes: c_int, height: c_int, width: c_int,
}
type Status = *mut c_void;

extern "C" {
    fn accelaes_status_code(status: Status) -> c_int;
    fn accelaes_status_sentence(status: Status) -> *const c_char;
    fn accelaes_open(folder: *const c_char, options: *const OpenOptions, bundle: *mut *mut c_void) -> Status;
    fn accelaes_bundle_facts(bundle: *const c_void, facts: *mut Facts);
    fn accelaes_run_new(bundle: *const c_void, options: *const RunOptions, run: *mut *mut c_void) -> Status;
    fn accelaes_run_prompt(run: *mut c_void, prompts: *const Prompt, count: usize, tensors: *const c_void, given: usize) -> Status;
    fn accelaes_run_next(run: *mut c_void, step: *mut c_void, more: *mut c_int) -> Status;
    fn accelaes_run_picture(run: *const c_void, pixels: *mut u8, size: usize) -> Status;
}

unsafe fn check(status: Status) {
    if status.is_null() { return; }
    eprintln!("error: {}", CStr::from_ptr(accelaes_status_sentence(status)).to_string_lossy());
    process::exit(accelaes_status_code(status));
}

fn main() {
    let words: Vec<CString> = env::args().skip(1).map(|word| CString::new(word).unwrap()).collect();
    if words.len() != 3 { eprintln!("error: give a bundle, a prompt and libonnxruntime.so"); process::exit(2); }
    unsafe {
        let (mut bundle, mut run, mut more) = (ptr::null_mut(), ptr::null_mut(), 1);
        let opening = OpenOptions { size: mem::size_of::<OpenOptions>(), library: words[2].as_ptr(), ..mem::zeroed() };
        check(accelaes_open(words[0].as_ptr(), &opening, &mut bundle));
        let mut facts = Facts { size: mem::size_of::<Facts>(), ..mem::zeroed() };
        accelaes_bundle_facts(bundle, &mut facts);
        let options = RunOptions { size: mem::size_of::<RunOptions>(), ..mem::zeroed() };
        check(accelaes_run_new(bundle, &options, &mut run));
        let prompt = Prompt { size: mem::size_of::<Prompt>(), text: words[1].as_ptr(), ..mem::zeroed() };
        check(accelaes_run_prompt(run, &prompt, 1, ptr::null(), 0));
        while more != 0 { check(accelaes_run_next(run, ptr::null_mut(), &mut more)); }
        let mut pixels = vec![0u8; (facts.height * facts.width * 3) as usize];
        check(accelaes_run_picture(run, pixels.as_mut_ptr(), pixels.len()));
        let mut out = std::io::stdout();
        out.write_all(format!("P6 {} {} 255\n", facts.width, facts.height).as_bytes()).and_then(|_| out.write_all(&pixels)).unwrap();
    }
}
