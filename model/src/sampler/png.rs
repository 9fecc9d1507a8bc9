//! Pictures as PNG files that say how they were made.

use super::draw::{RgbPixels, SampleRequest};

impl SampleRequest {
    /// The settings in the form that programs which show such pictures read: the prompt, the negative prompt, and a line
    /// of `Name: value` pairs.
    pub fn parameters(&self) -> String {
        let mut text = format!("{}\n", self.prompt);
        if !self.negative_prompt.is_empty() {
            text += &format!("Negative prompt: {}\n", self.negative_prompt);
        }
        text += &format!("Steps: {}, Sampler: {}", self.steps, self.sampler.title());
        if self.karras_sigmas == Some(true) {
            text += ", Schedule type: Karras";
        }
        let Self { guidance_scale, seed, width, height, .. } = self;
        text += &format!(", CFG scale: {guidance_scale}, Seed: {seed}, Size: {width}x{height}");
        if self.guidance_rescale != 0.0 {
            text += &format!(", Guidance rescale: {}", self.guidance_rescale);
        }
        if self.text.clip_skip > 1 {
            text += &format!(", Clip skip: {}", self.text.clip_skip);
        }
        text
    }
}

impl RgbPixels {
    /// Encodes a PNG with a text chunk named `parameters`: tEXt, or iTXt for what Latin-1 cannot write.
    ///
    /// # Errors
    ///
    /// When the picture has no pixels.
    ///
    /// # Panics
    ///
    /// When `data` has not three bytes per pixel.
    pub fn to_png(&self, parameters: &str) -> Result<Vec<u8>, png::EncodingError> {
        assert_eq!(self.data.len(), 3 * self.width * self.height, "three bytes per pixel");
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        // NUL ends the text of a chunk.
        let parameters = parameters.replace('\0', "");
        if parameters.chars().all(|c| u32::from(c) <= 0xFF) {
            encoder.add_text_chunk("parameters".to_owned(), parameters)?;
        } else {
            encoder.add_itxt_chunk("parameters".to_owned(), parameters)?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.data)?;
        writer.finish()?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplerKind;
    use crate::clip::TextSettings;

    #[test]
    fn the_settings_are_in_the_widespread_form() {
        let request = SampleRequest {
            prompt: "a boat".to_owned(),
            width: 64,
            height: 48,
            guidance_scale: 7.5,
            ..SampleRequest::default()
        };
        assert_eq!(request.parameters(), "a boat\nSteps: 30, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 64x48");
        let request = SampleRequest {
            negative_prompt: "fog".to_owned(),
            sampler: SamplerKind::DpmPlusPlus2M,
            karras_sigmas: Some(true),
            guidance_rescale: 0.7,
            text: TextSettings { clip_skip: 2, long_prompts: false },
            ..request
        };
        assert_eq!(
            request.parameters(),
            "a boat\nNegative prompt: fog\nSteps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, \
             Size: 64x48, Guidance rescale: 0.7, Clip skip: 2"
        );
    }

    #[test]
    fn the_settings_are_read_back_in_any_script() {
        let picture = RgbPixels { width: 2, height: 1, data: vec![0, 1, 2, 253, 254, 255] };
        for text in ["a größer boat", "日本の船\0", ""] {
            let bytes = picture.to_png(text).unwrap();
            let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
            let mut data = vec![0; reader.output_buffer_size().unwrap()];
            reader.next_frame(&mut data).unwrap();
            let info = reader.info();
            let latin = info.uncompressed_latin1_text.iter().map(|chunk| (&chunk.keyword, chunk.text.clone()));
            let unicode = info.utf8_text.iter().map(|chunk| (&chunk.keyword, chunk.get_text().unwrap()));
            let found: Vec<_> = latin.chain(unicode).collect();
            assert_eq!(found, [(&"parameters".to_owned(), text.replace('\0', ""))]);
            assert_eq!(data, picture.data);
        }
    }
}
