//! From a file's metadata and tensor directory to the op list of every unit.
//!
//! One function per part of the graph, one branch per field of [`ArchSpec`], in the order of the computation.
//! Nothing here reads weights or knows a device.

use super::hparams::{HParams, Keys, LayerParams};
use super::op::{MatrixId, Op, Product, Slot, Unit, VectorId, View};
use super::rope::Scaling;
use super::spec::{ArchSpec, Presence};
use super::tensors::Claims;
use super::{Architecture, ModelError, RopeFactors};
use nexaquant_gguf::Gguf;

/// Index of the rope table of local layers.
const LOCAL_ROPE: usize = 1;

struct Builder<'a> {
    spec: &'static ArchSpec,
    h: HParams,
    claims: Claims<'a>,
}

impl Architecture {
    /// Reads and checks everything but the weights.
    ///
    /// # Errors
    /// Names the key, tensor or architecture that is missing, unknown or wrong.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let name = gguf.metadata.need_str("general.architecture")?;
        let spec = ArchSpec::by_name(name).ok_or_else(|| ModelError::UnknownArchitecture {
            found: name.to_owned(),
            known: ArchSpec::all_names().collect::<Vec<_>>().join(", "),
        })?;
        let keys = Keys { md: &gguf.metadata, arch: name };
        let h = HParams::read(&keys, spec)?;
        let scaling = Scaling::read(&keys, h.context_length)?;

        let mut b = Builder { spec, h, claims: Claims::new(gguf) };
        let vocab = gguf
            .tensor("token_embd.weight")
            .ok_or_else(|| ModelError::MissingTensor { tensor: "token_embd.weight".to_owned() })?
            .rows() as usize;
        let embedding = b.claims.matrix("token_embd.weight", vocab, b.h.embd)?;
        let rope_factors = b.rope_factors()?;
        let mut units = vec![b.embedding(embedding)];
        for i in 0..b.h.layers.len() {
            units.push(b.layer(i)?);
        }
        units.push(b.head(embedding, vocab)?);

        let Builder { h: hparams, claims, .. } = b;
        let (matrices, vectors) = claims.finish(name)?;
        let name = name.to_owned();
        Ok(Self { name, spec, hparams, vocab, embedding, matrices, vectors, units, scaling, rope_factors })
    }
}

impl Builder<'_> {
    fn rope_factors(&mut self) -> Result<RopeFactors, ModelError> {
        let pairs = self.h.rope_dims / 2;
        let mut get = |name: &str| self.claims.vector_if(Presence::Optional, name, pairs);
        if let Some(all) = get("rope_freqs.weight")? {
            return Ok(RopeFactors::Always(all));
        }
        match (get("rope_factors_short.weight")?, get("rope_factors_long.weight")?) {
            (Some(short), Some(long)) => Ok(RopeFactors::ByContext { short, long }),
            (None, None) => Ok(RopeFactors::None),
            (Some(_), None) => {
                Err(ModelError::MissingTensor { tensor: "rope_factors_long.weight".to_owned() })
            }
            (None, Some(_)) => {
                Err(ModelError::MissingTensor { tensor: "rope_factors_short.weight".to_owned() })
            }
        }
    }

    fn embedding(&self, table: MatrixId) -> Unit {
        let scale = if self.spec.scaled_embedding { (self.h.embd as f32).sqrt() } else { 1.0 };
        Unit { name: "embedding".to_owned(), ops: vec![Op::Embed { table, scale }] }
    }

    fn head(&mut self, embedding: MatrixId, vocab: usize) -> Result<Unit, ModelError> {
        let embd = self.h.embd;
        let weight = self.claims.vector("output_norm.weight", embd)?;
        let own = self.claims.matrix_if(Presence::Optional, "output.weight", vocab, embd)?;
        let norm = View::new(Slot::Norm, embd);
        let product = Product {
            matrix: own.unwrap_or(embedding),
            first: 0,
            out: View::new(Slot::Logits, vocab),
            scale: None,
            bias: None,
            add_to: None,
        };
        let ops = vec![
            Op::RmsNorm { x: View::new(Slot::X, embd), weight, out: norm },
            Op::MatMul { input: norm, products: vec![product] },
        ];
        Ok(Unit { name: "head".to_owned(), ops })
    }

    fn layer(&mut self, i: usize) -> Result<Unit, ModelError> {
        let params = self.h.layers[i];
        let mut ops = Vec::new();
        self.attention(i, params, &mut ops)?;
        self.feed_forward(i, params, &mut ops)?;
        Ok(Unit { name: format!("layer {i}"), ops })
    }

    fn attention(&mut self, i: usize, params: LayerParams, ops: &mut Vec<Op>) -> Result<(), ModelError> {
        let spec = self.spec;
        let (embd, d) = (self.h.embd, self.h.head_dim);
        let (q_width, kv_width) = (self.h.heads * d, params.kv_heads * d);
        let name = |t: &str| format!("blk.{i}.{t}");
        let (x, norm) = (View::new(Slot::X, embd), View::new(Slot::Norm, embd));
        let qkv = View::new(Slot::Qkv, q_width + 2 * kv_width);
        let (q, k) = (qkv.part(0, q_width), qkv.part(q_width, kv_width));
        let v = qkv.part(q_width + kv_width, kv_width);

        ops.push(Op::RmsNorm { x, weight: self.claims.vector(&name("attn_norm.weight"), embd)?, out: norm });
        let products = if spec.fused_qkv {
            vec![self.product(&name("attn_qkv"), norm, qkv, spec.qkv_bias)?]
        } else {
            vec![
                self.product(&name("attn_q"), norm, q, spec.qkv_bias)?,
                self.product(&name("attn_k"), norm, k, spec.qkv_bias)?,
                self.product(&name("attn_v"), norm, v, spec.qkv_bias)?,
            ]
        };
        ops.push(Op::MatMul { input: norm, products });
        if spec.head_norms {
            for (x, weight) in [(q, "attn_q_norm.weight"), (k, "attn_k_norm.weight")] {
                ops.push(Op::RmsNormHeads { x, weight: self.claims.vector(&name(weight), d)? });
            }
        }
        let table = if params.window.is_some() { LOCAL_ROPE } else { 0 };
        ops.push(Op::Rope { x: q, table });
        ops.push(Op::Rope { x: k, table });
        ops.push(Op::KvAppend { layer: i, k, v });
        let attn = View::new(Slot::Attn, q_width);
        let (window, scale) = (params.window, self.h.attention_scale);
        ops.push(Op::Attention { layer: i, q, out: attn, window, scale });
        let input = self.sub_norm(&name("attn_sub_norm.weight"), attn, ops)?;
        self.add_product(&name("attn_output"), input, &name("post_attention_norm.weight"), ops)
    }

    fn feed_forward(&mut self, i: usize, params: LayerParams, ops: &mut Vec<Op>) -> Result<(), ModelError> {
        let spec = self.spec;
        let (embd, ff) = (self.h.embd, params.ff);
        let name = |t: &str| format!("blk.{i}.{t}");
        let (x, norm) = (View::new(Slot::X, embd), View::new(Slot::Norm, embd));
        let gate_up = View::new(Slot::GateUp, 2 * ff);
        let (gate, up) = (gate_up.part(0, ff), gate_up.part(ff, ff));

        ops.push(Op::RmsNorm { x, weight: self.claims.vector(&name("ffn_norm.weight"), embd)?, out: norm });
        let products = if spec.fused_gate_up {
            vec![self.product(&name("ffn_up"), norm, gate_up, spec.other_bias)?]
        } else {
            vec![
                self.product(&name("ffn_gate"), norm, gate, spec.other_bias)?,
                self.product(&name("ffn_up"), norm, up, spec.other_bias)?,
            ]
        };
        ops.push(Op::MatMul { input: norm, products });
        let hidden = View::new(Slot::Hidden, ff);
        ops.push(Op::Glu { gate, up, out: hidden, activation: self.h.activation });
        let input = self.sub_norm(&name("ffn_sub_norm.weight"), hidden, ops)?;
        self.add_product(&name("ffn_down"), input, &name("post_ffw_norm.weight"), ops)
    }

    /// The normalized copy of `x` where the architecture has a sub-norm, else `x` itself.
    fn sub_norm(&mut self, name: &str, x: View, ops: &mut Vec<Op>) -> Result<View, ModelError> {
        if !self.spec.sub_norms {
            return Ok(x);
        }
        let out = View::new(Slot::Norm, x.width);
        ops.push(Op::RmsNorm { x, weight: self.claims.vector(name, x.width)?, out });
        Ok(out)
    }

    /// The product that ends a half layer: added to the residual stream, normalized before that in Gemma.
    fn add_product(
        &mut self,
        name: &str,
        input: View,
        post_norm: &str,
        ops: &mut Vec<Op>,
    ) -> Result<(), ModelError> {
        let embd = self.h.embd;
        let (x, proj) = (View::new(Slot::X, embd), View::new(Slot::Proj, embd));
        let mut product = self.product(name, input, proj, self.spec.other_bias)?;
        if self.spec.post_norms {
            ops.push(Op::MatMul { input, products: vec![product] });
            let norm = View::new(Slot::Norm, embd);
            ops.push(Op::RmsNorm { x: proj, weight: self.claims.vector(post_norm, embd)?, out: norm });
            ops.push(Op::Add { x, y: norm });
        } else {
            product.add_to = Some(x);
            ops.push(Op::MatMul { input, products: vec![product] });
        }
        Ok(())
    }

    /// `<name>.weight`, with its bias and scale where the architecture has them.
    fn product(&mut self, name: &str, input: View, out: View, bias: Presence) -> Result<Product, ModelError> {
        let matrix = self.claims.matrix(&format!("{name}.weight"), out.width, input.width)?;
        let scale = self.claims.vector_if(self.spec.projection_scale, &format!("{name}.scale"), 1)?;
        let bias: Option<VectorId> = self.claims.vector_if(bias, &format!("{name}.bias"), out.width)?;
        Ok(Product { matrix, first: 0, out, scale, bias, add_to: None })
    }
}
