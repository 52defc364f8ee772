//! A shop inside your own binary: an order and its charge are one fact, and the charge happens once.

use chronon::{
    Call, CallError, Context, Contract, Duration, Emit, Emitted, Founding, Node, QueryContext, ReplicaId,
    Settled, SinkName, State, StateMachine, Table,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, State)]
struct Shop {
    orders: Table<u64, Order>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Order {
    Paying,
    Paid { receipt: String },
    Failed { reason: String },
}

#[derive(Serialize, Deserialize)]
struct Place {
    order: u64,
    cents: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Accepted,
    Duplicate,
}

#[derive(Clone, Serialize, Deserialize)]
struct Charge {
    order: u64,
    cents: u64,
}

impl StateMachine for Shop {
    type Command = Place;
    type Reply = Reply;
    type Query = u64;
    type Answer = Option<Order>;
    type Effect = Charge;
    type Outcome = String;
    const VERSION: u32 = 1;

    fn genesis() -> Shop {
        Shop { orders: Table::new() }
    }

    // The order and the wish to charge for it are committed together, or not at all.
    fn apply(&mut self, cx: &mut Context<'_, Shop>, Place { order, cents }: Place) -> Reply {
        if self.orders.contains_key(&order) {
            return Reply::Duplicate;
        }
        self.orders.insert(order, Order::Paying);
        cx.emit(Emit::to("psp").lane(format!("order/{order}")), Charge { order, cents });
        Reply::Accepted
    }

    // Heard exactly once for each effect, on every replica, in log order.
    fn settled(&mut self, _: &mut Context<'_, Shop>, charge: Emitted<Charge>, outcome: Settled<String>) {
        let order = match outcome {
            Settled::Delivered(receipt) => Order::Paid { receipt },
            Settled::Failed { reason } => Order::Failed { reason },
            Settled::Unknown => Order::Failed { reason: "nobody knows whether it was charged".into() },
            Settled::Cancelled => Order::Failed { reason: "it was never charged".into() },
        };
        self.orders.insert(charge.effect.order, order);
    }

    fn query(&self, _: &QueryContext, order: u64) -> Option<Order> {
        self.orders.get(&order).cloned()
    }
}

/// Stands for a payment provider that recognises our key for a day.
async fn charge(call: Call<Charge>) -> Result<String, CallError> {
    Ok(format!("{} cents, key {}", call.effect.cents, call.key.as_str()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let data = std::env::temp_dir().join(format!("shop-{}", std::process::id()));
    Node::<Shop>::format(&data, &Founding::draw(1)?.log_size(16 << 20), ReplicaId::new(0))?;
    let contract = Contract::Idempotent { window: Duration::from_secs(86_400), replays_errors: false };
    let node = Node::<Shop>::open(&data).call(SinkName::new("psp")?, contract, charge).start().await?;
    node.ready().await?;

    let client = node.client();
    let placed = client.submit(&Place { order: 42, cents: 1_999 }).await?;
    println!("op {}: {:?}, effects {:?}", placed.op(), placed.reply, placed.effects);
    while client.query(&42).await?.answer == Some(Order::Paying) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("order 42: {:?}", client.query(&42).await?.answer);
    node.shutdown().await;
    Ok(std::fs::remove_dir_all(&data)?)
}
