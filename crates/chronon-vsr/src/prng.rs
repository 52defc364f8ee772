//! The one source of randomness: seeded, small, the same on every machine.

/// xoshiro256** (Blackman & Vigna 2018), seeded through SplitMix64. For jitter and simulation, never for secrets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prng {
    state: [u64; 4],
}

impl Prng {
    /// A generator whose whole future is a function of `seed`.
    pub fn new(seed: u64) -> Prng {
        let mut mix = seed;
        let mut next = || {
            mix = mix.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (mix ^ (mix >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Prng { state: [next(), next(), next(), next()] }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= t;
        *d = d.rotate_left(45);
        result
    }

    /// A number in `0..bound`, uniform to within 2⁻⁶⁴ (Lemire's multiplication). `bound` must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(0 < bound);
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high);
        if high - low == u64::MAX { self.next_u64() } else { low + self.below(high - low + 1) }
    }

    /// True `numerator` times out of `denominator`.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// A generator of its own, so that one consumer's draws do not shift another's.
    pub fn fork(&mut self) -> Prng {
        Prng::new(self.next_u64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_what_it_always_drew() {
        // The reference implementations' output: SplitMix64 fills the state, xoshiro256** draws.
        let mut zero = Prng::new(0);
        let drawn = [zero.next_u64(), zero.next_u64(), zero.next_u64()];
        assert_eq!(drawn, [0x99ec_5f36_cb75_f2b4, 0xbf6e_1f78_4956_452a, 0x1a5f_849d_4933_e6e0]);
        let mut one = Prng::new(1);
        let later = (0..1000).map(|_| one.next_u64()).last();
        assert_eq!(
            (later, one.fork().next_u64(), one.below(1000), one.between(5, 9)),
            (Some(0xb8517c33c344d153), 0xa0c19f412daa03ea, 879, 8)
        );
    }

    #[test]
    fn draws_stay_within_their_bounds_and_reach_them() {
        let mut prng = Prng::new(7);
        let mut seen = [false; 6];
        for _ in 0..1000 {
            seen[prng.below(6) as usize] = true;
            assert!((3..=5).contains(&prng.between(3, 5)));
            assert_eq!(prng.below(1), 0);
            assert_eq!(prng.between(8, 8), 8);
            assert!(prng.chance(1, 1));
            assert!(!prng.chance(0, 1));
        }
        assert_eq!(seen, [true; 6]);
        prng.between(0, u64::MAX);
        prng.below(u64::MAX);
    }

    #[test]
    fn a_fork_draws_on_its_own() {
        let (mut one, mut other) = (Prng::new(3), Prng::new(3));
        let mut forked = one.fork();
        other.fork();
        forked.next_u64();
        assert_eq!(one.next_u64(), other.next_u64());
    }
}
