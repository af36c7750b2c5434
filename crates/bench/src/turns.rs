//! In which order contenders take their turns: nobody always follows the same one, whose traces in the kernel it would pay for.

/// The order of a round: another permutation each round, and every one once in as many rounds as there are.
pub fn order(round: usize, count: usize) -> Vec<usize> {
    let (mut left, mut number): (Vec<usize>, usize) = ((0..count).collect(), round);
    let mut order = Vec::with_capacity(count);
    while !left.is_empty() {
        order.push(left.remove(number % left.len()));
        number /= left.len() + 1;
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_orders_come_equally_often() {
        for (count, permutations) in [(1, 1), (2, 2), (3, 6), (4, 24)] {
            let orders: BTreeSet<Vec<usize>> = (7..7 + permutations).map(|round| order(round, count)).collect();
            assert_eq!(orders.len(), permutations, "of {count}");
            assert!(orders.iter().all(|order| order.iter().collect::<BTreeSet<_>>().len() == count));
        }
    }
}
