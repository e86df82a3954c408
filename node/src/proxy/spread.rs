//! How agents that come back are kept from coming all at once.

use std::time::Duration;

/// Over how long so many agents have to spread, so that no second sees more than `budget` of them.
///
/// Each draws its moment by itself, and so seconds differ: of a mean m, their standard deviation is
/// its square root. The mean is chosen so that the budget lies six deviations above it.
pub(super) fn spread_ms(agents: u64, budget: u32) -> u64 {
    const DEVIATIONS: f64 = 6.0;
    let budget = f64::from(budget.max(1));
    let root = ((DEVIATIONS * DEVIATIONS + 4.0 * budget).sqrt() - DEVIATIONS) / 2.0;
    let agents = f64::from(u32::try_from(agents).unwrap_or(u32::MAX));
    let spread = Duration::try_from_secs_f64(agents / (root * root)).unwrap_or(Duration::MAX);
    u64::try_from(spread.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::spread_ms;

    #[test]
    fn the_budget_lies_well_above_the_mean() {
        assert_eq!(spread_ms(0, 200), 0);
        // 131 a second, whose deviation is 11.5.
        assert_eq!(spread_ms(10_000, 200), 76_185);
        // 16 a second, whose deviation is 4.
        assert_eq!(spread_ms(1000, 40), 62_500);
        assert!(spread_ms(u64::MAX, 0) > 1 << 36);
        for budget in [1, 10, 100, 1_000_000] {
            let mean = 1e9 / spread_ms(1_000_000, budget) as f64;
            let bound = mean + 6.0 * mean.sqrt();
            assert!(bound <= f64::from(budget) * 1.001, "{budget}: {mean}");
        }
    }
}
