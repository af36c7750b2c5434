//! The little statistics that the benches need: order statistics, which ask nothing of the distribution, and how close times are.

/// The median; of an even number the mean of the two in the middle, NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The value below which `percent` of the values lie (nearest rank); NaN of none.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
    sorted(values).get(rank).copied().unwrap_or(f64::NAN)
}

/// Two of the values between which the median of the distribution lies with a probability of at least 95 %, whatever the
/// distribution; none of fewer than six values, which cannot say that much.
///
/// It lies below the k-th smallest of n with the probability that fewer than k of n fair coins show heads.
pub fn median_interval(values: &[f64]) -> Option<(f64, f64)> {
    let (sorted, count) = (sorted(values), values.len());
    let (mut below, mut chance, mut rank) = (0.0, 0.5_f64.powi(i32::try_from(count).ok()?), None);
    for heads in 0..count / 2 {
        below += chance;
        if below > 0.025 {
            break;
        }
        rank = Some(heads);
        chance *= (count - heads) as f64 / (heads + 1) as f64;
    }
    rank.map(|rank| (sorted[rank], sorted[count - 1 - rank]))
}

/// From the first to the last, of times in order.
pub fn span(times: &[f64]) -> f64 {
    times.last().zip(times.first()).map_or(0.0, |(last, first)| last - first)
}

/// The most that came within a tenth of a second, of times in order.
pub fn densest(times: &[f64]) -> usize {
    let from = |at: usize| times[at..].iter().take_while(|time| **time < times[at] + 0.1).count();
    (0..times.len()).map(from).max().unwrap_or_default()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up_to(count: u8) -> Vec<f64> {
        (1..=count).rev().map(f64::from).collect()
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(median(&[]).is_nan());
        assert_eq!([1, 2, 9, 10].map(|count| median(&up_to(count)).to_string()), ["1", "1.5", "5", "5.5"]);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        assert_eq!(
            [0, 50, 95, 100].map(|percent| percentile(&up_to(50), percent).to_string()),
            ["1", "25", "48", "50"]
        );
        assert!(percentile(&[], 95).is_nan());
    }

    #[test]
    fn the_interval_is_that_of_the_tables() {
        let interval = |count| median_interval(&up_to(count)).map(|(low, high)| (low.to_string(), high.to_string()));
        let expect = |low: &str, high: &str| Some((low.to_owned(), high.to_owned()));
        assert_eq!(interval(5), None);
        assert_eq!(interval(6), expect("1", "6"));
        assert_eq!(interval(8), expect("1", "8"));
        assert_eq!(interval(9), expect("2", "8"));
        assert_eq!(interval(15), expect("4", "12"));
        assert_eq!(interval(50), expect("18", "33"));
    }

    #[test]
    fn lists_are_spread_or_dense() {
        let times = [0.1, 0.11, 0.12, 0.5, 5.3];
        assert!((span(&times) - 5.2).abs() < 1e-9 && densest(&times) == 3);
        assert_eq!((span(&[]), densest(&[])), (0.0, 0));
    }
}
