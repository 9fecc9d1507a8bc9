//! Elementary functions that loops can be vectorised over.

/// Runs a loop compiled for the widest vectors that this CPU has: `vectorised!((name: type = value, ..) { .. })`.
///
/// What the loop calls must be `#[inline(always)]`, and it must hold no closures: a function of its own that is called from
/// three places is compiled once, for the narrowest vectors.
macro_rules! vectorised {
    (($($name:ident: $type:ty = $value:expr),* $(,)?) $body:block) => {{
        #[expect(non_camel_case_types, reason = "the types are named as the values")]
        struct Loop<$($name),*> {
            $($name: $name),*
        }
        impl pulp::WithSimd for Loop<$($type),*> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: pulp::Simd>(self, _: S) {
                let Self { $($name),* } = self;
                $body
            }
        }
        $(let $name: $type = $value;)*
        pulp::Arch::new().dispatch(Loop { $($name),* });
    }};
}
pub(crate) use vectorised;

/// eˣ to about one unit in the last place, without branches, so that loops over it become vector instructions.
/// Arguments are clamped to -87..=88.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to a whole number in the low bits
    const LN_2_HIGH: f32 = 0.693_359_4; // 355/512, exact in nine bits
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    // e^r = 1 + r + r²·q(r), q by a minimax fit on |r| ≤ ln(2)/2.
    let q = 0.499_999_94 + r * (0.166_665_21 + r * (0.041_668_39 + r * (0.008_368_745 + r * 0.001_381_453_8)));
    let scale = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    (1.0 + r + r * r * q) * scale
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function to about 1e-7, by two minimax fits and without branches.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let t = if x.abs() > 4.0 { 4.0 } else { x.abs() }; // keeps NaN, as `min` would not
    let s = t * t;
    let near = t
        * (std::f32::consts::FRAC_2_SQRT_PI
            + s * (-0.376_126_26
                + s * (0.112_835_854
                    + s * (-0.026_853_811 + s * (0.005_188_327_7 + s * (-8.010_193e-4 + s * 7.853_858e-5))))));
    // erfc(t) = e^-q(t)
    let q = 2.564_363_5e-4
        + t * (1.127_426_1
            + t * (0.637_599_95
                + t * (0.103_566_96 + t * (-0.022_052_03 + t * (0.002_999_549_3 + t * -1.915_050_7e-4)))));
    let far = 1.0 - exp(-q);
    (if t < 1.0 { near } else { far }).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_accurate() {
        let mut worst = [0.0f64; 2];
        for i in -40_000..=40_000 {
            let x = i as f32 * 0.001;
            let exact = f64::from(x).exp();
            worst[0] = worst[0].max((f64::from(exp(x)) - exact).abs() / exact);
            worst[1] = worst[1].max((f64::from(erf(x)) - libm::erf(f64::from(x))).abs());
        }
        assert!(worst[0] < 2e-7 && worst[1] < 2e-7, "{worst:?}");
        assert!(exp(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
    }

    #[test]
    fn vectors_give_the_bits_of_scalars() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.037).collect();
        let mut y = x.clone();
        vectorised!((y: &mut [f32] = &mut y) {
            for y in y {
                *y = exp(*y) + erf(*y) * sigmoid(*y);
            }
        });
        for (x, y) in x.iter().zip(y) {
            assert_eq!(y.to_bits(), (exp(*x) + erf(*x) * sigmoid(*x)).to_bits());
        }
    }
}
