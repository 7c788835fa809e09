//! The calls of Arrow Flight.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, Result as ActionResult, SchemaAsIpc, SchemaResult, Ticket as FlightTicket,
};
use arrow_ipc::writer::IpcWriteOptions;
use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use tokenmill_shared::dataset::{Split, data_schema};
use tokenmill_shared::service::{ACTIONS, Description, ExchangeRequest, Ticket};
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status, Streaming};

use super::catalogue::{Catalogue, Content, Served};
use super::door::Counts;
use super::exchange::Exchange;
use super::http2::Peer;
use super::limits;
use super::statistics::{Listed, Statistics};
use super::stream::{self as blocks, Batches, in_background, refused};

/// The service.
pub struct Flight {
    /// What is served.
    pub catalogue: Arc<Catalogue>,
    /// Who reads.
    pub statistics: Arc<Statistics>,
    /// What came to the door.
    pub counts: Arc<Counts>,
    /// True when streams shall end.
    pub stopping: watch::Receiver<bool>,
    /// Streams of live text that may be opened.
    pub live: Arc<Semaphore>,
    /// Streams of any kind that may be opened.
    pub streams: Arc<Semaphore>,
    /// Batches of exchanges that may be tokenized at a time.
    pub cores: Arc<Semaphore>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Flight {
    fn served(&self, name: &str) -> Result<Arc<Served>, Status> {
        let known = || self.catalogue.iter().map(|served| served.name.as_str()).collect::<Vec<_>>().join(", ");
        let unknown = || Status::not_found(format!("there is no dataset {name:?}; there is {}", known()));
        self.catalogue.get(name).ok_or_else(unknown)
    }

    /// What a descriptor names: a ticket as JSON, or a path of a name and perhaps a split.
    fn ticket_of(descriptor: &FlightDescriptor) -> Result<Ticket, Status> {
        if !descriptor.cmd.is_empty() {
            return Ticket::parse(&descriptor.cmd).map_err(Status::invalid_argument);
        }
        let (name, split) = match descriptor.path.as_slice() {
            [name] => (name, Split::Train),
            [name, split] => (name, split.parse().map_err(Status::invalid_argument)?),
            _ => return Err(Status::invalid_argument("name a dataset by its name, or by name and split")),
        };
        Ok(Ticket { dataset: name.clone(), split, ..Ticket::default() })
    }

    /// What is known of what `ticket` names.
    async fn describe(&self, ticket: &Ticket) -> Result<Description, Status> {
        let (served, block_size) = (self.served(&ticket.dataset)?, ticket.block_size);
        in_background(move || served.describe(block_size)).await
    }

    async fn info(&self, ticket: Ticket, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let description = self.describe(&ticket).await?;
        let missing = || Status::not_found(format!("{} has no split {}", ticket.dataset, ticket.split));
        let split = description.splits.get(&ticket.split).ok_or_else(missing)?;
        let blocks = split.blocks.map(|blocks| blocks.min(ticket.blocks.unwrap_or(u64::MAX)));
        let rows = blocks.map(|blocks| ticket.positions(blocks).count() as i64);
        let bytes = (description.block_size * description.token_width.bytes()) as i64;
        let schema = data_schema(description.block_size, description.token_width);
        let sealed = Ticket { fingerprint: Some(description.fingerprint.clone()), ..ticket };
        Ok(FlightInfo::new()
            .try_with_schema(&schema)
            .map_err(|error| Status::internal(error.to_string()))?
            .with_descriptor(descriptor)
            .with_endpoint(FlightEndpoint::new().with_ticket(FlightTicket::new(sealed.to_bytes())))
            .with_total_records(rows.unwrap_or(-1))
            .with_total_bytes(rows.map_or(-1, |rows| rows.saturating_mul(bytes)))
            .with_ordered(true)
            .with_app_metadata(serde_json::to_vec(&description).expect("plain data")))
    }

    fn peer<T>(request: &Request<T>) -> SocketAddr {
        request.extensions().get::<Peer>().expect("the door says it").0
    }

    fn statistics_json(&self) -> Value {
        use std::sync::atomic::Ordering::Relaxed;
        let (all, door) = (&self.statistics, &self.counts);
        let sent = all.sent();
        json!({
            "consumers": all.open().iter().map(|consumer| consumer.json()).collect::<Vec<_>>(),
            "rows_sent": sent.rows,
            "tokens_sent": sent.tokens,
            "streams_opened": sent.opened,
            "connections": door.open.load(Relaxed),
            "connections_accepted": door.accepted.load(Relaxed),
            "connections_beyond_limit": door.beyond_limit.load(Relaxed),
            "connections_too_slow": door.too_slow.load(Relaxed),
            "requests": door.requests.load(Relaxed),
            "requests_without_token": door.without_token.load(Relaxed),
        })
    }
}

/// The batches of one ticket, until they end, are cancelled, or the service stops.
struct Sending {
    batches: Batches,
    listed: Listed,
    tokens_per_row: u64,
    stopping: watch::Receiver<bool>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Sending {
    async fn next(mut self: Box<Self>) -> Option<(Result<FlightData, Status>, Option<Box<Self>>)> {
        let position = || self.listed.consumer.position.load(std::sync::atomic::Ordering::Relaxed);
        let batch = tokio::select! {
            biased;
            _ = self.stopping.wait_for(|stopping| *stopping) => Err(stopped(Some(position()))),
            () = self.listed.consumer.cancelled.notified() => Err(cancelled()),
            batch = self.batches.next() => batch?,
        };
        match batch {
            Ok(batch) => {
                self.listed.sent(batch.rows, batch.rows * self.tokens_per_row, batch.next);
                Some((Ok(batch.message), Some(self)))
            }
            Err(status) => Some((Err(status), None)),
        }
    }
}

/// Not `CANCELLED`, which is what a broken connection looks like, and is tried again.
fn cancelled() -> Status {
    Status::aborted("cancelled by an action")
}

fn stopped(position: Option<u64>) -> Status {
    let place = position.map_or_else(String::new, |position| format!(" at position {position}"));
    Status::unavailable(format!("the service is stopping; go on with another one{place}"))
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<ActionResult>;
    type ListActionsStream = Answers<ActionType>;

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented("there is no handshake; send a header: authorization: Bearer TOKEN"))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let mut infos = Vec::new();
        for served in self.catalogue.iter() {
            let descriptor = FlightDescriptor::new_path(vec![served.name.clone()]);
            let ticket = Ticket { dataset: served.name.clone(), ..Ticket::default() };
            infos.push(Ok(self.info(ticket, descriptor).await?));
        }
        Ok(Response::new(Box::pin(stream::iter(infos))))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let descriptor = request.into_inner();
        Ok(Response::new(self.info(Self::ticket_of(&descriptor)?, descriptor).await?))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented("nothing here takes long; use GetFlightInfo"))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let description = self.describe(&Self::ticket_of(request.get_ref())?).await?;
        let schema = data_schema(description.block_size, description.token_width);
        let message = SchemaAsIpc::new(&schema, &IpcWriteOptions::default()).try_into();
        message.map(Response::new).map_err(|error: arrow_schema::ArrowError| Status::internal(error.to_string()))
    }

    async fn do_get(&self, request: Request<FlightTicket>) -> Result<Response<Self::DoGetStream>, Status> {
        let peer = Self::peer(&request);
        let ticket = Ticket::parse(&request.into_inner().ticket).map_err(Status::invalid_argument)?;
        if *self.stopping.borrow() {
            return Err(stopped(None));
        }
        let served = self.served(&ticket.dataset)?;
        let full = |what: &str| Status::resource_exhausted(format!("too many streams{what} are open; try again"));
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| full(""))?;
        let live = match &served.content {
            Content::Prepared(_) => None,
            Content::Live(_) => Some(Arc::clone(&self.live).try_acquire_owned().map_err(|_| full(" of text"))?),
        };
        let begin = (ticket.epoch, ticket.first_position());
        let (split, name) = (ticket.split.as_str(), ticket.consumer.clone());
        let listed = self.statistics.list(peer, name, &ticket.dataset, split, begin);
        let opened = tokio::task::spawn_blocking(move || blocks::open(&served, ticket, live)).await;
        let opened = opened.map_err(|_| Status::internal("a fault of this program; its log says where"))??;
        if let Some(end) = opened.end {
            let _ = listed.consumer.end.set(end);
        }
        let sending = Box::new(Sending {
            batches: opened.batches,
            listed,
            tokens_per_row: opened.block_size as u64,
            stopping: self.stopping.clone(),
            _permit: permit,
        });
        let rest = stream::unfold(Some(sending), |sending| async move { sending?.next().await });
        Ok(Response::new(Box::pin(stream::iter([Ok(opened.schema)]).chain(rest))))
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        Err(Status::unimplemented("nothing is stored here; use DoExchange for text in and ids out"))
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        let peer = Self::peer(&request);
        if *self.stopping.borrow() {
            return Err(stopped(None));
        }
        let full = |_| Status::resource_exhausted("too many streams are open; try again");
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(full)?;
        let mut input = request.into_inner();
        let nothing =
            || Status::invalid_argument("the first message needs a descriptor, whose command says what to do");
        let first = input.message().await?.ok_or_else(nothing)?;
        let descriptor = first.flight_descriptor.clone().ok_or_else(nothing)?;
        let asked: ExchangeRequest = serde_json::from_slice(&descriptor.cmd)
            .map_err(|error| Status::invalid_argument(format!("the command is not one: {error}")))?;
        let served = self.served(&asked.dataset)?;
        let listed = self.statistics.list(peer, asked.consumer.clone(), &asked.dataset, "exchange", (0, 0));
        let loading = Arc::clone(&served);
        let tokenizer = in_background(move || loading.tokenizer()).await?;
        let input = Box::pin(stream::iter([Ok(first)]).chain(input));
        let exchange = Exchange::open(&served, asked, tokenizer, input, Arc::clone(&self.cores), listed)?;
        let state = Some((Box::new(exchange), self.stopping.clone(), permit));
        let answers = stream::unfold(state, |state| async move {
            let (mut exchange, mut stopping, permit) = state?;
            let consumer = Arc::clone(&exchange.listed().consumer);
            let answer = tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => Err(stopped(None)),
                () = consumer.cancelled.notified() => Err(cancelled()),
                answer = exchange.next() => answer?,
            };
            let go_on = answer.is_ok();
            Some((answer, go_on.then_some((exchange, stopping, permit))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let Action { r#type: name, body } = request.into_inner();
        let fields = || -> Result<Value, Status> {
            serde_json::from_slice(&body).map_err(|error| Status::invalid_argument(format!("the body: {error}")))
        };
        let one = |value: Value| vec![value.to_string().into_bytes()];
        let results = match name.as_str() {
            "health" => one(json!({"status": if *self.stopping.borrow() { "stopping" } else { "serving" }})),
            "statistics" => one(self.statistics_json()),
            "cancel" => {
                let fields = fields()?;
                let id = fields["id"].as_u64().ok_or_else(|| Status::invalid_argument("cancel: {\"id\": NUMBER}"))?;
                one(json!({"cancelled": self.statistics.cancel(id)}))
            }
            "tokenizer" => {
                let fields = fields()?;
                let served = self.served(fields["dataset"].as_str().unwrap_or_default())?;
                let files = tokio::task::spawn_blocking(move || served.tokenizer_files()).await;
                let files = files.map_err(|_| Status::internal("a fault of this program"))?.map_err(refused)?;
                let with_name = |(name, bytes): (String, Vec<u8>)| {
                    let mut result = json!({"name": name}).to_string().into_bytes();
                    result.push(b'\n');
                    result.extend(bytes);
                    result
                };
                files.into_iter().map(with_name).collect()
            }
            _ => return Err(Status::unimplemented(format!("there is no action {name:?}; ListActions knows them"))),
        };
        let results = results.into_iter().map(|body| Ok(ActionResult { body: body.into() }));
        Ok(Response::new(Box::pin(stream::iter(results.collect::<Vec<_>>()))))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let action = |(name, description): (&str, &str)| {
            Ok(ActionType { r#type: name.to_owned(), description: description.to_owned() })
        };
        Ok(Response::new(Box::pin(stream::iter(ACTIONS.map(action)))))
    }
}

/// Streams that may be open at a time, over all connections.
pub const OPEN_STREAMS: usize = 1024;

/// Semaphores for a [`Flight`].
pub fn semaphores() -> [Arc<Semaphore>; 3] {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    [limits::LIVE_STREAMS, OPEN_STREAMS, cores].map(|permits| Arc::new(Semaphore::new(permits)))
}
